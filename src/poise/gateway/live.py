"""The API requests that are being answered now, by their ids: what operators look at and act on."""

from __future__ import annotations

from typing import Protocol

from poise.gateway.generation import Generation, Origin


class LiveCall(Protocol):
    """One API request between its arrival at the engine and its end."""

    @property
    def response_id(self) -> str: ...

    @property
    def origin(self) -> Origin: ...

    @property
    def generation(self) -> Generation | None:
        """What the engine computes for it now; None between two computations."""
        ...


class LiveRequests:
    """In the order of their arrival."""

    def __init__(self) -> None:
        self._calls: dict[str, LiveCall] = {}

    def add(self, call: LiveCall) -> None:
        self._calls[call.response_id] = call

    def discard(self, call: LiveCall) -> None:
        self._calls.pop(call.response_id, None)

    def all(self) -> list[LiveCall]:
        return list(self._calls.values())

    def find(self, wanted: str) -> LiveCall | None:
        """By the id of the response, or by an X-Request-Id that only one live request has: clients choose those themselves."""
        if (call := self._calls.get(wanted)) is not None:
            return call
        matching = [call for call in self._calls.values() if call.origin.request_id == wanted]
        return matching[0] if len(matching) == 1 else None
