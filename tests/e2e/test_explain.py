"""`poise explain` and `poise top` against a real server: one request waits for another, and the explanation names it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.server import PoiseServer, run_poise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def narrow_server() -> Iterator[PoiseServer]:
    """One slot for everybody; nothing is measured at its start."""
    server = PoiseServer.start(
        *("--set", "pools.short.slots=1", "--set", "classes.interactive.slots_max=1"),
        *("--set", "classes.background.slots_max=1", "--set", "pools.short.flash_attention=on"),
        *("--set", "pools.long.flash_attention=off"),
    )
    yield server
    assert server.stop() == 0


def post(server: PoiseServer, max_tokens: int, **parameters: Any) -> Any:
    """The open response to a chat."""
    body = {"model": "default", "messages": [{"role": "user", "content": "Tell me about rivers."}]}
    data = json.dumps(body | {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0} | parameters).encode()
    asked = urllib.request.Request(f"{server.url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(asked, timeout=280)


def n_queued(server: PoiseServer) -> int:
    return int(server.get("/status")[1]["classes"]["interactive"]["queued"])


def test_who_waited_for_whom(narrow_server: PoiseServer) -> None:
    """The second request of a tenant waits for the only slot: the first one's id is told, to itself."""
    with ThreadPoolExecutor(1) as pool, post(narrow_server, 300, stream=True) as first:
        first_id = first.headers["X-Poise-Response-Id"]
        first.readline()
        waiting = pool.submit(lambda: json.load(post(narrow_server, 3)))
        narrow_server.eventually(lambda: n_queued(narrow_server) == 1, "the second one waits")
        shown = run_poise("top", "--once", "--url", narrow_server.url)
        for _ in first:
            pass
        second_id = waiting.result()["id"]
    assert shown.returncode == 0, shown.stderr
    assert "short slots" in shown.stdout
    assert first_id in shown.stdout
    told = run_poise("explain", "last", "--url", narrow_server.url)
    assert told.returncode == 0, told.stderr
    text = " ".join(told.stdout.split())
    assert text.startswith(second_id)
    assert f"1 of the 1 slots of pool short was held: 1 by an interactive request of the same tenant ({first_id})." in text
    figures = json.loads(run_poise("explain", second_id, "--json", "--url", narrow_server.url).stdout)["figures"]
    queue, prefill = figures["queue"], figures["prefill"]
    assert (queue["position"], queue["slots_held"], queue["others"][0]["ids"]) == (1, 1, [first_id])
    assert queue["others"][0]["output_tokens"] > 0
    assert queue["slots_full_ms"] > 0.8 * queue["waited_ms"]
    assert prefill["computed_tokens"] + prefill["cached_tokens"] == figures["prompt_tokens"]
    assert figures["decode"]["gaps"] == 2
    assert figures["engine_ms"] > 0
    assert figures["outcome"] == "length"
