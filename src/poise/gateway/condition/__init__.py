"""How the server stands: its level, its last ten minutes, and what an operator should look at."""
