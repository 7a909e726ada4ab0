"""Strangers at the door of a server that asks for keys and keeps a log."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.attacks.besieged import Besieged
from tests.attacks.peer import ask

STRANGERS = 300
LINES_MAX = 4
"""One for each minute that the test may touch, and what the polite client's own requests are not counted in."""


async def test_strangers_write_no_more_than_a_line_a_minute(keyed: Besieged) -> None:
    """Hundreds without a key are refused, and the log says how many in a line; who has a key is served beside them."""
    async with keyed.undisturbed():
        site = keyed.site()
        outcomes: Counter[str] = Counter()
        for _ in range(STRANGERS // 10):
            requests = [site.chat("x", key=f"guess-{site.rng.getrandbits(64):016x}") for _ in range(10)]
            outcomes.update(await asyncio.gather(*(ask(site, request) for request in requests)))
    assert {outcome.split()[0] for outcome in outcomes} <= {"401", "429"}, outcomes
    await keyed.settle()
    lines = await asyncio.to_thread(refusals, keyed.audit)
    assert len(lines) <= LINES_MAX, lines[:5]


def refusals(folder: Path) -> list[str]:
    """Lines about callers that nobody knows."""
    lines = [line for path in folder.glob("audit-*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if "invalid_api_key" in line or '"strangers"' in line]
