"""Reading answers: what of them is reasoning, a call of a function or text, by a template of the model's family."""
