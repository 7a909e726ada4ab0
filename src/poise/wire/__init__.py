"""Messages that cross the sockets between processes."""
