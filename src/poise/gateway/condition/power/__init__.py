"""Power, heat and quotas of the host: what they are, and how far the server holds back for them."""
