"""A connection, from its first byte to its last: what it may send, how long it may take, how much of the server it may hold."""
