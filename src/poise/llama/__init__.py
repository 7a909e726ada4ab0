"""Everything that touches llama.cpp: model files, what fits, and the runner."""
