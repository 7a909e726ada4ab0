"""Finding better settings for a host by measuring, and how much load it can take."""
