"""Clients that are not polite: who leaves early, reads slowly, sends nonsense or is paced, as files say it and as it is sent."""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import islice

import psutil
import pytest
from aiohttp import web

from poise_lab.bench.load import slow_session
from poise_lab.bench.prompts import MALFORMED, malformed_body
from poise_lab.bench.target import EngineKiller, new_session
from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.model import Event, PlannedRequest, Reading, Targets
from poise_lab.scenarios.parser import parse_scenario, parse_target
from tests.bench.test_load import COMPLETE, DONE, ROLE, TOKEN, Server, answering, check, load, run, scenario, stream

HEAD = """
name = "x"
description = "For tests."
duration_s = 10.0
drain_s = 5.0
"""
CLIENT = """
[[clients]]
name = "chat"
tenant = "chat"
class = "interactive"
arrival = { kind = "closed" }
prompt_tokens = 12
output_tokens = 30
"""


def planned(more: str, n: int = 400) -> list[PlannedRequest]:
    (one,) = parse_scenario(HEAD + CLIENT + more, "x.toml").requests(1)
    return list(islice(one.requests, n))


def test_behaviour_is_drawn_apart() -> None:
    """What a client does changes nothing of what it asks for."""
    plain = [(r.n_prompt_tokens, r.n_output_tokens, r.seed) for r in planned("")]
    wild = planned("malformed_share = 0.5\ncancel_after_ms = 100\ncancel_share = 0.3\n")
    assert [(r.n_prompt_tokens, r.n_output_tokens, r.seed) for r in wild] == plain
    assert 150 < sum(r.malformed for r in wild) < 250
    assert 80 < sum(r.cancel_after_ms == 100 for r in wild) < 160
    stays = planned("cancel_after_tokens = 3\ncancel_share = 0.0\n")
    assert {r.cancel_after_tokens for r in stays} == {None}


def test_reading_events_and_targets_are_read() -> None:
    """Each form of `read_rate`, the events and the targets."""
    forms = {
        "{ tokens_per_s = 4.0 }": Reading("tokens", per_s=4.0),
        "{ bytes_per_s = 500.0 }": Reading("bytes", per_s=500.0),
        "{ stuck_after_tokens = 5, stuck_s = 2.0 }": Reading("stuck", after_tokens=5, stuck_s=2.0),
        "{ stuck_after_tokens = 0 }": Reading("stuck"),
    }
    for text, reading in forms.items():
        assert parse_scenario(HEAD + CLIENT + f"read_rate = {text}\n", "x").clients[0].reading == reading
    more = '[[events]]\nkind = "kill_engine"\nat_s = 3\n[targets.interactive]\nttft_ms = 500\nitl_p99_ms = 80.5\n'
    found = parse_scenario(HEAD + CLIENT + more, "x")
    assert found.events == (Event("kill_engine", 3.0),)
    assert found.targets == (Targets("interactive", ttft_ms=500.0, itl_p99_ms=80.5),)
    assert parse_target("background.e2e_ms=9000") == Targets("background", e2e_ms=9000.0)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("read_rate = { }\n", "clients[0].read_rate: expected exactly one of tokens_per_s"),
        ("read_rate = { tokens_per_s = 1, bytes_per_s = 2 }\n", "given here: tokens_per_s, bytes_per_s"),
        ("read_rate = { tokens_per_s = 0 }\n", "read_rate.tokens_per_s = 0: expected a number from 0.01"),
        ("cancel_before_first_token = true\n", "cancel_before_first_token = True: needs cancel_after_ms"),
        ("cancel_before_first_token = 1\n", "expected true or false"),
        ("fresh_tenants = 1\n", "clients[0].fresh_tenants = 1: expected true or false"),
        ("malformed_share = 1.5\n", "malformed_share = 1.5: expected a number from 0 to 1"),
        ('[[events]]\nkind = "earthquake"\nat_s = 1\n', "events[0].kind = 'earthquake': expected \"kill_engine\""),
        ("[targets.interactive]\n", "targets.interactive: expected one or more of ttft_ms"),
        ("[targets.interactive]\nttft = 5\n", "targets.interactive.ttft = 5: unknown key"),
        ("[targets.batch]\nttft_ms = 5\n", "targets.batch"),
    ],
)
def test_bad_behaviour_is_explained(more: str, part: str) -> None:
    """As for every other key: what, where, and what is allowed."""
    with pytest.raises(InputError) as caught:
        parse_scenario(HEAD + CLIENT + more, "x.toml")
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "interactive.ttft_ms", "batch.ttft_ms=3", "interactive.ttft=3", "interactive.e2e_ms=."])
def test_bad_targets_are_explained(text: str) -> None:
    """One line says how a target is written."""
    with pytest.raises(InputError, match=r"expected CLASS\.NAME=MILLISECONDS"):
        parse_target(text)


async def test_leaving_by_the_clock() -> None:
    """A client whose time is up leaves, whatever it has, and the server sees it go."""
    never = asyncio.Event()

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        response = await stream(request, [ROLE, TOKEN])
        await never.wait()
        return response

    async with Server(script).running() as server:
        result = await load(server.url, scenario(more="cancel_after_ms = 200"))
        await asyncio.wait_for(server.somebody_left.wait(), 20)
    assert [r.status for r in result.records] == ["cancelled"]


async def test_patience_ends_with_the_first_token() -> None:
    """Who waits for a first token only leaves without one, and stays with one."""
    never = asyncio.Event()

    async def script(request: web.Request, index: int) -> web.StreamResponse:
        if index == 0:
            await never.wait()
        response = await stream(request, [ROLE, TOKEN])
        await asyncio.sleep(0.4)  # Longer than the patience, so that a client that looks at the clock would be gone.
        await response.write(TOKEN + DONE)
        return response

    more = "cancel_after_ms = 200\ncancel_before_first_token = true"
    result, _ = await run(script, scenario(requests=2, more=more))
    assert [(r.status, len(r.chunks_ns)) for r in result.records] == [("cancelled", 0), ("ok", 2)]


async def test_malformed_requests_are_to_be_refused() -> None:
    """A refusal is right and no failure; an answer to nonsense is wrong."""

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        return web.json_response({"error": {"type": "invalid_request_error"}}, status=400)

    assert len({malformed_body(seed) for seed in range(len(MALFORMED))}) == len(MALFORMED)

    class Raw(Server):
        async def _chat(self, request: web.Request) -> web.StreamResponse:
            return await self._script(request, 0)

    async with Raw(script).running() as server:
        result = await load(server.url, scenario(requests=3, more="malformed_share = 1.0"))
    assert [r.status for r in result.records] == ["refused"] * 3
    assert not any(r.failed for r in result.records)
    async with Raw(answering(COMPLETE)).running() as server:
        result = await load(server.url, scenario(more="malformed_share = 1.0"))
    assert [r.status for r in result.records] == ["error:200/not_refused"]


@pytest.mark.parametrize(
    "rate", ["{ tokens_per_s = 200.0 }", "{ bytes_per_s = 20000.0 }", "{ stuck_after_tokens = 2, stuck_s = 0.1 }"]
)
async def test_slow_readers_read_everything(rate: str) -> None:
    """However slowly it is read, the answer is whole, and its gaps are in no figure."""
    result = await check(answering(COMPLETE), "ok", 3, workload=scenario(more=f"read_rate = {rate}"))
    record = result.records[0]
    assert record.ttft_ms() is not None
    assert (record.gaps_ms(), record.max_gap_ms(), record.e2e_ms()) == ([], None, None)


async def test_a_stuck_reader_holds_the_server_up() -> None:
    """What a stuck reader does not take waits at the server, which cannot write on: the point of a slow reader."""
    n_written = 0
    big = TOKEN * 200

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        nonlocal n_written
        response = await stream(request, [TOKEN])
        for _ in range(400):  # 6 MB, more than the buffers of both sides.
            await response.write(big)
            n_written += 1
        return response

    workload = scenario(more="read_rate = { stuck_after_tokens = 1 }", duration_s=0.4, drain_s=0.2)
    result, _ = await run(script, workload)
    assert result.records[0].status == "unfinished"
    assert len(result.records[0].chunks_ns) < 10
    assert n_written < 400


async def test_the_slow_connection_is_small() -> None:
    """The kernel is asked for a small buffer before the connection is made."""
    async with slow_session() as session:
        factory = session.connector._socket_factory  # type: ignore[union-attr]
        made = factory((2, 1, 6, "", ("127.0.0.1", 1)))
        with made:
            assert made.getsockopt(1, 8) <= 16384


async def test_a_paced_loop_waits_from_when_it_was_due() -> None:
    """A closed loop with a rate counts the time for which an answer kept its next request from being sent."""

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await stream(request, COMPLETE)

    arrival = '{ kind = "closed", rate_per_s = 100.0 }'
    result, server = await run(script, scenario(requests=4, arrival=arrival))
    late_ms = [record.late_ns / 1e6 for record in result.records]
    assert server.n_open_max == 1
    assert late_ms[1:] == sorted(late_ms[1:])
    assert late_ms[3] > 200
    last = result.records[3]
    ttft, corrected = last.ttft_ms(), last.ttft_corrected_ms()
    assert ttft is not None
    assert corrected is not None
    assert corrected.value == pytest.approx(ttft.value + late_ms[3])
    assert result.late_ns_max == 0


def test_a_paced_loop_is_not_early() -> None:
    """Instances are due in turn, each at its rate."""
    text = HEAD + CLIENT.replace('{ kind = "closed" }', '{ kind = "closed", rate_per_s = 2.0 }') + "count = 2\n"
    due = [[r.due_s for r in islice(s.requests, 3)] for s in parse_scenario(text, "x").requests(1)]
    assert due == [[0.0, 0.5, 1.0], [0.25, 0.75, 1.25]]


SLEEPER = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys\ncommand = [sys.executable, '-c', {SLEEPER!r}]\nwhile True: subprocess.Popen(command).wait()\n"


async def test_no_kill_without_leave() -> None:
    """A scenario alone kills nothing; the result says why not."""
    workload = parse_scenario(
        HEAD.replace("10.0", "0.6")
        + CLIENT.replace("output_tokens = 30", "output_tokens = 3\nrequests = 1\n")
        + '[[events]]\nkind = "kill_engine"\nat_s = 0.0\n',
        "x",
    )
    result, _ = await run(answering(COMPLETE), workload)
    assert [(event.done, "--allow-kill" in event.detail) for event in result.events] == [(False, True)]


async def test_the_engine_is_found_again() -> None:
    """The process that replaces a killed engine is the next one to be killed; other hosts and nobody are left alone."""
    parent = psutil.Popen([sys.executable, "-c", PARENT])
    try:
        first = await child_of(parent, but=None)
        async with new_session() as session:
            killer = EngineKiller("http://127.0.0.1:9", first.pid)
            done, detail = await killer.kill(session)
            assert done, detail
            assert f"process {first.pid} " in detail
            second = await child_of(parent, but=first.pid)
            done, detail = await killer.kill(session)
            assert done, detail
            assert f"process {second.pid} " in detail
            assert await EngineKiller("http://10.0.0.1:80", second.pid).kill(session) == (
                False, "http://10.0.0.1:80 is not on this host",
            )  # fmt: skip
            assert not (await EngineKiller("http://127.0.0.1:9", None).kill(session))[0]
            assert not (await EngineKiller("http://127.0.0.1:9", os.getpid()).kill(session))[0]
    finally:
        parent.suspend()  # Or it would start another one meanwhile.
        for child in parent.children():
            child.kill()
        parent.kill()
        parent.wait()


async def child_of(parent: psutil.Popen, but: int | None) -> psutil.Process:
    while True:
        for child in parent.children():
            if child.pid != but and SLEEPER in child.cmdline():
                return child
        await asyncio.sleep(0.02)
