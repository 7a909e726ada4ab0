"""What is measured on this host once, and chosen by it: the weights' format, attention, chunks."""
