"""A dialect: how one API asks for a generation, and how it wants its answer and its errors written.

It reads a body into the canonical request, and gives the writers of what a record becomes. No dialect knows another.
"""

from __future__ import annotations

from typing import Any, Protocol

from poise.gateway.records.writer import Answered, Writer
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError


class Dialect(Protocol):
    @property
    def name(self) -> str:
        """What metrics and traces call its operation."""
        ...

    @property
    def prompt_param(self) -> str:
        """The field that has the prompt, for errors to name."""
        ...

    @property
    def id_prefix(self) -> str:
        """What the ids of its responses begin with."""
        ...

    def schema(self) -> dict[str, Any]:
        """Of the bodies that it reads, as JSON Schema."""
        ...

    def read(self, body: dict[str, Any]) -> Generate:
        """What a body asks for. Raises ApiError."""
        ...

    def writer(self, answered: Answered) -> Writer:
        """For one reader of an answer."""
        ...

    def refusal(self, error: ApiError) -> bytes:
        """The body of an answer that is none."""
        ...
