"""Why a request was slow, in words."""
