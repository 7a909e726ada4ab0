"""The model's text side: texts to ids by workers, ids to text by a table."""
