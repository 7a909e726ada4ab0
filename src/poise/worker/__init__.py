"""The processes beside the gateway."""
