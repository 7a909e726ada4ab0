"""What only this server has: requests, operators, status, history, explanations."""
