"""What fits this host: memory before a load, and the load that was measured."""
