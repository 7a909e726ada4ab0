"""A model of this host: from a canonical request to the engine's requests, and from tokens to a record."""
