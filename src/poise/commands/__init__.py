"""Commands that work on this host's files and settings, whether a server runs or not."""
