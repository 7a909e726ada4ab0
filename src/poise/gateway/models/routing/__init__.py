"""Where a request is answered: labels, rules over its text, and the policy that decides. Pure but for what scans the text."""
