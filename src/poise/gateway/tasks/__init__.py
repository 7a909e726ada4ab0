"""The supervisor of tasks: whatever works beside the requests is started by it, and does not die in silence."""

from poise.gateway.tasks.tasks import Tasks

__all__ = ["Tasks"]
