"""The simulator with everything that can go wrong, and everything that must hold, asked after each step: `make sim`."""
