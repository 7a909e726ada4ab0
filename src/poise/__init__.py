"""poise: a local LLM server that keeps its composure under load."""

__version__ = "0.1.0"
