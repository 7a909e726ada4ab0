"""Cells and bytes: whose they are, what can be used again, what goes first."""
