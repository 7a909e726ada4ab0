"""All kinds of attack at once on one server, for a while: `python -m tests.attacks.besiege`, with an Order in JSON on its input.

It runs at low priority, because it shares the machine with the server, ends by itself at the end of its time or of its input, and
then prints what came of each kind as JSON. The same seed gives the same attacks in the same order by kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace

from tests.attacks.kinds import KINDS, Kind
from tests.attacks.peer import Site

LAST_S = 30.0
"""Longest wait at the end for strikes that are still at it."""
NICE = 10


@dataclass(frozen=True)
class Order:
    """What is to be done.

    kinds      names of the kinds; empty: all
    intensity  share of each kind's crew and rate
    """

    port: int
    seconds: float
    seed: int = 1
    kinds: list[str] = field(default_factory=list)
    intensity: float = 1.0
    sources: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    forwarded: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=lambda: [""])
    admin_key: str = ""
    hold_s: float = 20.0

    def json(self) -> str:
        return json.dumps(asdict(self))


class Siege:
    """Carries an order out, and counts what came of every strike."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._chosen = [KINDS[name] for name in order.kinds] if order.kinds else list(KINDS.values())
        self._until_s = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self.outcomes: dict[str, Counter[str]] = {kind.name: Counter() for kind in self._chosen}

    async def run(self) -> None:
        self._until_s = time.monotonic() + self._order.seconds
        await asyncio.gather(*map(self._repeat, self._chosen))
        if self._running:
            await asyncio.wait(self._running, timeout=LAST_S)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _repeat(self, kind: Kind) -> None:
        """Strikes of one kind at random moments around its rate, as long as its crew has somebody free."""
        order = self._order
        rng = random.Random(f"{order.seed}/{kind.name}")
        site = Site(order.port, order.sources, order.forwarded, order.keys, order.admin_key, order.hold_s, rng)
        crew, at_work = max(1, round(kind.crew * order.intensity)), 0
        number = 0
        while (left_s := self._until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, rng.uniform(0.2, 1.8) * kind.every_s / order.intensity))
            if at_work >= crew or time.monotonic() >= self._until_s:
                continue
            number += 1
            own = replace(site, rng=random.Random(f"{order.seed}/{kind.name}/{number}"))
            task = asyncio.create_task(self._strike(kind, own))
            at_work += 1
            self._running.add(task)

            def done(task: asyncio.Task[None]) -> None:
                nonlocal at_work
                at_work -= 1
                self._running.discard(task)

            task.add_done_callback(done)

    async def _strike(self, kind: Kind, site: Site) -> None:
        try:
            outcome = await asyncio.wait_for(kind.strike(site), 4 * self._order.hold_s + 30)
        except TimeoutError:
            outcome = "no end"
        except OSError:
            outcome = "not connected"
        self.outcomes[kind.name][outcome] += 1


async def _main(order: Order) -> dict[str, dict[str, int]]:
    siege = Siege(order)
    running = asyncio.create_task(siege.run())
    # Whoever gave the order holds the other end of the input: when they are gone, nobody wants this any more.
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(running.cancel)), daemon=True).start()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return {name: dict(outcomes) for name, outcomes in siege.outcomes.items()}


def main() -> int:
    os.nice(NICE)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(asyncio.run(_main(Order(**json.loads(sys.stdin.readline()))))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
