"""Other servers as backends: their formats, their queues in front of them, their health, their answers into records."""
