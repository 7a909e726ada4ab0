"""From a request to the engine's requests, and from tokens to a record."""
