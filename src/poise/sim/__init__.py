"""The production scheduler and loop on virtual time, with every fault, checked after each step."""
