"""Commands that are outside clients of a running server: what operators look at and act with."""
