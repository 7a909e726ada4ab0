"""The text worker's process: templates and tokenising, where they can be ended."""
