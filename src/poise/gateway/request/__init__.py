"""What is asked for, whatever the dialect and the model."""
