"""Who may do what: tenants, operators, and strangers."""
