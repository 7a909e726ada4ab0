"""What is kept of each response, in memory only, and how it is read: as a stream or as a body."""
