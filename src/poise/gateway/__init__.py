"""The gateway's process: HTTP in front, the engine and the text workers behind."""
