"""Requests to label and to search."""

from __future__ import annotations

from typing import Any

from poise.gateway.request.generate import PLAIN, Generate
from poise.scheduler.request import RequestClass
from poise.wire.to_engine import SamplingParams


def generate(**changes: Any) -> Generate:
    """A request with nothing in it but what is said."""
    usual: dict[str, Any] = {
        "model": "m",
        "prompt": ["hello"],
        "n": 1,
        "stream": False,
        "max_tokens": None,
        "stop": (),
        "seed": None,
        "sampling": SamplingParams(),
        "request_class": RequestClass.INTERACTIVE,
        "queue_timeout_ms": 0,
        "background": False,
        "answer": PLAIN,
    }
    return Generate(**usual | changes)
