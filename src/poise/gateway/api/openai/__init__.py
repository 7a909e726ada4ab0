"""The OpenAI API: its requests read, its answers written."""
