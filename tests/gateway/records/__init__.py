"""Records and their readers."""
