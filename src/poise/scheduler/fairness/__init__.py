"""Who was served how much, who is next, and how much of something shared one may take."""
