"""A dialect: how one API asks for a generation, and how it wants its answer and its errors written.

It reads a body into the canonical request, and gives the writers of what a record becomes. No dialect knows another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poise.gateway.records.writer import MakeWriter
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError


@dataclass(frozen=True, slots=True)
class Dialect:
    name: str
    """What metrics and traces call its operation."""
    prompt_param: str
    """The field that has the prompt, for errors to name."""
    id_prefix: str
    """What the ids of its responses begin with."""
    schema: Callable[[], dict[str, Any]]
    """Of the bodies that it reads, as JSON Schema."""
    read: Callable[[dict[str, Any]], Generate]
    """What a body asks for. Raises ApiError."""
    writer: MakeWriter
    """For one reader of an answer."""
    refusal: Callable[[ApiError], bytes] = ApiError.body
    """The body of an answer that is none."""
