"""What strangers, clumsy clients and hostile tenants do to a server, and what must be left of it: nothing."""
