"""The production scheduler and loop on virtual time: predictions, replays, and the load at which promises break."""
