"""The benchmark: a client from outside. It knows scenarios and HTTP, and nothing of the server it measures."""
