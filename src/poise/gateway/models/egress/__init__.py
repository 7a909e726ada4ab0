"""The one way out: nothing of a request leaves this host but through here, with a permit, after the audit entry is written."""
