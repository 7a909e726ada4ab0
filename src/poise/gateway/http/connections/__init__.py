"""Connections, from the socket to a request and back: who may have one, and every bound on it."""
