"""The settings of a request class, and what follows from them."""

from poise.config import ClassSettings, Settings
from poise.scheduler.request import RequestClass


def class_settings(settings: Settings, request_class: RequestClass) -> ClassSettings:
    classes = settings.classes
    return classes.interactive if request_class is RequestClass.INTERACTIVE else classes.background


def default_output(limits: ClassSettings) -> int:
    """Most output tokens of a request that names no number."""
    return min(limits.default_output_tokens or limits.max_output_tokens, limits.max_output_tokens)
