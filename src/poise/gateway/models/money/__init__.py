"""What other servers cost: prices, budgets that are reserved before and settled after, and the ledger. Integers only."""
