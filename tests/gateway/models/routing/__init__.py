"""Where a request is answered: labels, rules over its text, and the policy."""
