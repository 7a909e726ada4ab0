"""llama.cpp itself: its library, and models, vocabularies, batches and contexts over it."""
