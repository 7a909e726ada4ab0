"""One tenant against keys that are new with every request: its share of what is computed, and its time to first token.

    poise serve --port 8000
    .venv/bin/python scripts/measure_newcomers.py http://127.0.0.1:8000 --seconds 60

Forty closed-loop clients use each key once; one client without a key sends its own requests beside them, one after the other,
all of the same length. A fair share is that of one among the accounts that are alive at a time: eight keys, the one that all
others share, and the tenant itself. Tokens are counted, not compute: all requests are alike.
"""

from __future__ import annotations

import argparse
import http.client
import json
import secrets
import sys
import threading
import time
import urllib.request

from poise.gateway.tenancy.accounts import ALIVE_MAX

OUTPUT_TOKENS = 24


def ask(url: str, key: str, until_s: float) -> tuple[int, float]:
    """Output tokens that came until then, and seconds to the first one. Raises OSError, also for a refusal."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Count on from one."}],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    began_s, first_s, n_tokens = time.monotonic(), 0.0, 0
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        for line in response:
            if line.startswith(b"data: ") and b'"content"' in line:
                first_s = first_s or time.monotonic() - began_s
                n_tokens += time.monotonic() < until_s
    return n_tokens, first_s


class Tally:
    """What came, and what was refused."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.n_refused = 0
        self.first_s: list[float] = []

    def keep_asking(self, url: str, until_s: float, *, fresh: bool) -> None:
        while time.monotonic() < until_s:
            try:
                n_tokens, first_s = ask(url, secrets.token_hex(8) if fresh else "", until_s)
            except (OSError, http.client.HTTPException):
                self.n_refused += 1
                time.sleep(0.2)
                continue
            self.n_tokens += n_tokens
            self.first_s.append(first_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--own", type=int, default=1, help="requests that the tenant keeps in flight")
    arguments = parser.parse_args()
    until_s = time.monotonic() + arguments.seconds
    own, others = Tally(), [Tally() for _ in range(arguments.clients)]
    asking = [(tally, True) for tally in others] + [(own, False)] * arguments.own
    threads = [
        threading.Thread(target=tally.keep_asking, args=(arguments.url, until_s), kwargs={"fresh": fresh})
        for tally, fresh in asking
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = own.n_tokens + sum(tally.n_tokens for tally in others)
    n_alive = min(arguments.clients, ALIVE_MAX + 1) + 1
    waits = sorted(own.first_s)
    figures = {
        "answers": len(waits),
        "refused": own.n_refused,
        "share_of_fair": round(own.n_tokens * n_alive / total, 2) if total else None,
        "ttft_p50_s": round(waits[len(waits) // 2], 2) if waits else None,
        "ttft_max_s": round(waits[-1], 2) if waits else None,
        "others_answers": sum(len(tally.first_s) for tally in others),
        "others_refused": sum(tally.n_refused for tally in others),
    }
    print(json.dumps(figures))
    return 0 if waits else 1


if __name__ == "__main__":
    sys.exit(main())
