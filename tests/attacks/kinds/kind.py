"""A kind of attack: what one strike of it does, and how often it is repeated in a siege."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.attacks.peer import Site

Strike = Callable[[Site], Awaitable[str]]
"""One bounded attack. Returns what came of it, in a word or two; raises nothing but OSError."""


@dataclass(frozen=True)
class Kind:
    """promises  which ones it tries to break, by their numbers in docs/threat-model.md
    every_s   in a siege, the mean time between the beginnings of two strikes
    crew      in a siege, the most strikes at a time"""

    name: str
    promises: tuple[str, ...]
    every_s: float
    crew: int
    strike: Strike


KINDS: dict[str, Kind] = {}


def kind(*promises: str, every_s: float, crew: int = 1) -> Callable[[Strike], Strike]:
    """Puts a strike on the list under its own name."""

    def put(strike: Strike) -> Strike:
        name = getattr(strike, "__name__", "").strip("_")
        assert name not in KINDS, name
        KINDS[name] = Kind(name, promises, every_s, crew, strike)
        return strike

    return put
