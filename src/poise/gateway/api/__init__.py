"""What clients can ask for: one room for each dialect, one for what is of this server alone."""
