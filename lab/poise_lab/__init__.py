"""The laboratory: what measures servers, simulates the scheduler and finds settings. No part of it runs in a server."""
