"""Two tenants, one to eight in offered load, against a running server: what each was served, from the engine's own books.

    poise serve --port 8000 --set pools.short.slots=4 --set classes.interactive.slots_max=4 --set engine.journal_entries=100000
    .venv/bin/python scripts/measure_fairness.py http://127.0.0.1:8000 --seconds 60

Closed-loop clients, 6 of one tenant and 48 of the other, so that both always have requests waiting for the four slots. Afterwards
the journal is fetched and run again through the scheduler: its counters at the end of the load are the ones the live engine had.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable
from hashlib import sha256

from poise.operator_token import find_token
from poise.scheduler.request import RequestClass
from poise.scheduler.scheduler import Scheduler
from poise_lab.sim.replay import replay

CLIENTS = {"polite": 6, "flood": 48}
OUTPUT_TOKENS = 8


def keep_asking(url: str, key: str, tier: str, until_s: float, errors: list[str]) -> None:
    """One closed-loop client."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": f"Count on from {key}."}],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "service_tier": tier,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    while time.monotonic() < until_s:
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=240) as response:  # noqa: S310
                response.read()
        except (OSError, http.client.HTTPException) as error:
            errors.append(str(error))
            return


def load(url: str, tier: str, seconds: float) -> list[str]:
    errors: list[str] = []
    until_s = time.monotonic() + seconds
    threads = [
        threading.Thread(target=keep_asking, args=(url, key, tier, until_s, errors))
        for key, n in CLIENTS.items()
        for _ in range(n)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class Books:
    """Served cost after each step while both tenants had requests waiting."""

    def __init__(self, request_class: RequestClass) -> None:
        self._class = request_class
        self._tenants = [f"key-{sha256(key.encode()).hexdigest()[:12]}" for key in CLIENTS]
        self.served: list[list[int]] = []
        self.times_ns: list[int] = []

    def watch(self, now_ns: int, scheduler: Scheduler) -> None:
        served = scheduler.served[self._class].tenants
        queues = scheduler._books.queues
        waiting = [s.request.tenant for (c, _), q in queues.items() if c is self._class for s in q.queued()]
        if all(tenant in waiting for tenant in self._tenants):
            self.served.append([served[tenant] for tenant in self._tenants])
            self.times_ns.append(now_ns)

    def figures(self) -> dict[str, object]:
        first, last = self.served[0], self.served[-1]
        gained = [b - a for a, b in zip(first, last, strict=True)]
        return {
            "seconds": round((self.times_ns[-1] - self.times_ns[0]) / 1e9, 1),
            "jain": round(sum(gained) ** 2 / (len(gained) * sum(g * g for g in gained)), 4),
            "served_ms": {key: g // 1000 for key, g in zip(CLIENTS, gained, strict=True)},
            "largest_difference_ms": max(abs(a - b) for a, b in self.served) // 1000,
        }


def fetch_journal(url: str) -> Iterable[str]:
    request = urllib.request.Request(f"{url}/admin/journal", headers={"Authorization": f"Bearer {find_token(url)}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        return list(response.read().decode().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tier", choices=["default", "flex"], default="default", help="flex: background")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    errors = load(arguments.url, arguments.tier, arguments.seconds)
    if errors:
        print(f"{len(errors)} requests failed: {errors[0]}", file=sys.stderr)
        return 1
    books = Books(RequestClass.BACKGROUND if arguments.tier == "flex" else RequestClass.INTERACTIVE)
    done = replay(fetch_journal(arguments.url), books.watch)
    if done.difference:
        print(f"the journal was not repeated: {done.difference}", file=sys.stderr)
        return 1
    figures = books.figures()
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
