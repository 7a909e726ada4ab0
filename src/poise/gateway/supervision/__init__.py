"""The engine's process: started, watched, started again."""
