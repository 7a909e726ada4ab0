"""One round against a scripted server: what is sent, and how every way of answering is classified and counted.

Nothing here asserts a duration. Where one side must wait for the other it waits for an event.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from poise_lab.bench.load import RoundLoad, RoundResult
from poise_lab.bench.prompts import WORDS, prompt
from poise_lab.bench.sse import LINE_BYTES_MAX, EventDecoder, error_type
from poise_lab.bench.target import Target, TargetError, base_url, discover, new_session, wait_ready
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import parse_scenario

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":42,"completion_tokens":3,"total_tokens":45}}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETE = [ROLE, TOKEN, TOKEN, TOKEN, STOP, USAGE, DONE]

Script = Callable[[web.Request, int], Awaitable[web.StreamResponse]]


class Server:
    """Answers each chat request by `script` and remembers what it was asked."""

    def __init__(self, script: Script) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.n_open = 0
        self.n_open_max = 0
        self.n_gone = 0
        self.somebody_left = asyncio.Event()
        self.url = ""
        self._script = script

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self._chat)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        index = len(self.bodies)
        self.bodies.append(json.loads(await request.read()))
        self.authorizations.append(request.headers["Authorization"])
        self.n_open += 1
        self.n_open_max = max(self.n_open_max, self.n_open)
        try:
            return await self._script(request, index)
        except asyncio.CancelledError:
            self.n_gone += 1
            self.somebody_left.set()
            raise
        finally:
            self.n_open -= 1


def scenario(
    *,
    requests: int = 1,
    count: int = 1,
    arrival: str = '{ kind = "closed" }',
    duration_s: float = 60.0,
    drain_s: float = 60.0,
    more: str = "",
    warmup: int = 0,
) -> Scenario:
    """One client that sends so many requests; the round ends when they have ended."""
    return parse_scenario(
        f"""
        name = "scripted"
        description = "For tests."
        duration_s = {duration_s}
        drain_s = {drain_s}
        warmup_requests = {warmup}
        [[clients]]
        name = "chat"
        tenant = "alice"
        class = "interactive"
        count = {count}
        requests = {requests}
        arrival = {arrival}
        prompt_tokens = 12
        output_tokens = 3
        {more}
        """,
        "scripted.toml",
    )


async def stream(request: web.Request, pieces: list[bytes]) -> web.StreamResponse:
    """Answers with `pieces`, each written on its own."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response


def answering(pieces: list[bytes]) -> Script:
    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        return await stream(request, pieces)

    return script


async def load(url: str, workload: Scenario, *, extensions: bool = True, max_tokens: bool = True) -> RoundResult:
    async with new_session() as session:
        target = Target(url, "the-model", extensions)
        return await RoundLoad(workload, target, session, seed=1, text_seed=1, retry_pause_s=0.0, max_tokens=max_tokens).run()


async def run(script: Script, workload: Scenario, *, extensions: bool = True) -> tuple[RoundResult, Server]:
    async with Server(script).running() as server:
        return await load(server.url, workload, extensions=extensions), server


async def check(script: Script, status: str, n_chunks: int, *, workload: Scenario | None = None) -> RoundResult:
    """A single request ends with `status` after `n_chunks` chunks with text."""
    result, _ = await run(script, workload or scenario())
    assert [(record.status, len(record.chunks_ns)) for record in result.records] == [(status, n_chunks)]
    return result


async def test_complete_answer() -> None:
    """Chunks with text are counted, the usage is taken over, and times follow each other."""
    result = await check(answering(COMPLETE), "ok", 3)
    record = result.records[0]
    assert (record.n_prompt_tokens, record.n_output_tokens, record.short) == (42, 3, False)
    assert 0 < record.chunks_ns[0] <= record.chunks_ns[1] <= record.chunks_ns[2] <= record.end_ns
    assert 0 < result.window_ns == result.elapsed_ns


async def test_what_is_sent() -> None:
    """The request carries everything that makes two servers do the same work."""
    result, server = await run(answering(COMPLETE), scenario())
    body = server.bodies[0]
    system, user = body.pop("messages")
    assert (system["role"], user["role"]) == ("system", "user")
    words = [system["content"], *user["content"].split()]
    assert len(words) == 12
    assert set(words) <= set(WORDS)
    assert body.pop("seed") > 0
    assert body == {
        "model": "the-model",
        "max_tokens": 3,
        "ignore_eos": True,
        "temperature": 0.8,
        "stream": True,
        "stream_options": {"include_usage": True},
        "service_tier": "default",
    }
    assert server.authorizations == ["Bearer bench-alice"]
    assert result.seed == 1


async def test_a_new_key_for_each_request() -> None:
    """`fresh_tenants`: no two requests have the same one, in this round or in another of the same seed."""
    text = '[[clients]]\nname="f"\ntenant="f"\nclass="interactive"\nrequests=3\nfresh_tenants=true\n'
    workload = scenario(more="temperature = 0\n" + text + 'arrival={kind="closed"}\nprompt_tokens=9\noutput_tokens=3\n')
    keys = [key for _ in range(2) for key in (await run(answering(COMPLETE), workload))[1].authorizations]
    fresh = [key for key in keys if key.startswith("Bearer bench-f-")]
    assert len(set(fresh)) == len(fresh) == 6
    assert keys.count("Bearer bench-alice") == 2


async def test_extensions() -> None:
    """Background work asks for the flex tier; a foreign server is not sent the field."""
    text = 'temperature = 0\n[[clients]]\nname="w"\ntenant="w"\nclass="background"\nrequests=1\n'
    text += 'arrival={kind="closed"}\nprompt_tokens=9\noutput_tokens=3\n'
    _, server = await run(answering(COMPLETE), scenario(more=text))
    assert sorted(body["service_tier"] for body in server.bodies) == ["default", "flex"]
    _, server = await run(answering(COMPLETE), scenario(more=text), extensions=False)
    assert not any("service_tier" in body for body in server.bodies)


async def test_prompts_are_unique() -> None:
    """No two requests of a round share a prompt, and two rounds with equal seeds send the same ones."""
    workload = scenario(requests=5, count=3)
    _, first = await run(answering(COMPLETE), workload)
    _, second = await run(answering(COMPLETE), workload)
    prompts = [body["messages"][1]["content"] for body in first.bodies]
    assert len(set(prompts)) == 15
    assert sorted(prompts) == sorted(body["messages"][1]["content"] for body in second.bodies)
    assert prompt(7, 1, 50) != prompt(7, 2, 50)


async def test_a_conversation_goes_on_from_what_the_server_said() -> None:
    """The next turn repeats the one before and its answer, word for word; the third conversation begins anew."""
    _, server = await run(answering(COMPLETE), scenario(requests=3, more="turns = 2"))
    first, second, third = (body["messages"] for body in server.bodies)
    assert second[:2] == first
    assert [m["role"] for m in second[2:]] == ["assistant", "user"]
    assert second[2]["content"] == " word word word"
    assert len(third) == 2


async def test_a_turn_without_an_answer_is_gone_on_from() -> None:
    """What was cut off half-way is not repeated: there stand words of the answer's length, the same for every server."""

    async def script(request: web.Request, index: int) -> web.StreamResponse:
        return await stream(request, COMPLETE[:3] if index == 0 else COMPLETE)

    _, server = await run(script, scenario(requests=2, more="turns = 2"))
    answer = server.bodies[1]["messages"][2]["content"].split()
    assert len(answer) == 3
    assert set(answer) <= set(WORDS)


async def test_frames_in_fragments() -> None:
    """A stream cut into single bytes gives what the whole gives."""
    pieces = [bytes([byte]) for byte in b"".join(COMPLETE)]
    result = await check(answering(pieces), "ok", 3)
    assert result.records[0].n_prompt_reported == 42


async def test_many_frames_in_one_write() -> None:
    """Chunks that arrive together count each, with one time."""
    result = await check(answering([b"".join(COMPLETE)]), "ok", 3)
    assert len(set(result.records[0].chunks_ns)) == 1


async def test_refusal() -> None:
    """A 429 is an error with its type, and the client goes on to its next request."""

    async def script(request: web.Request, index: int) -> web.StreamResponse:
        if index == 0:
            body = {"error": {"message": "queue full", "type": "rate_limit_exceeded", "code": None}}
            return web.json_response(body, status=429)
        return await stream(request, COMPLETE)

    result, _ = await run(script, scenario(requests=2))
    assert [record.status for record in result.records] == ["error:429/rate_limit_exceeded", "ok"]
    assert "queue full" in result.records[0].message
    assert result.records[0].ttft_ms() is None


async def test_error_without_json() -> None:
    """An error body that is not JSON is an error all the same."""

    async def script(_request: web.Request, _index: int) -> web.StreamResponse:
        return web.Response(status=502, text="<html>bad gateway</html>")

    await check(script, "error:502/unknown", 0)


async def test_error_in_the_stream() -> None:
    """An error event ends the request; what came before it counts."""
    event = b'data: {"error":{"message":"engine lost","type":"server_error","code":500}}\n\n'
    await check(answering([ROLE, TOKEN, event, TOKEN]), "error:200/server_error", 1)


async def test_chunk_that_is_no_json() -> None:
    """A broken chunk is the server's failure, not a crash of the client."""
    await check(answering([TOKEN, b"data: {oops\n\n", DONE]), "error:200/bad_chunk", 1)


async def test_answer_without_text() -> None:
    """An answer that ends well but says nothing is not a success."""
    await check(answering([ROLE, STOP, DONE]), "error:200/no_text", 0)


async def test_short_answer() -> None:
    """A server that ends early by itself succeeds, and is noticed."""
    usage = USAGE.replace(b'"completion_tokens":3', b'"completion_tokens":1')
    result = await check(answering([TOKEN, usage, DONE]), "ok", 1)
    assert result.records[0].short


async def test_connection_lost_in_the_stream() -> None:
    """A server that vanishes leaves a disconnected request with its tokens."""

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        response = await stream(request, [TOKEN, TOKEN])
        assert request.transport is not None
        request.transport.close()
        return response

    await check(script, "disconnected", 2)


async def test_end_without_done() -> None:
    """A stream that ends in good order but before [DONE] is a lost one."""
    await check(answering([TOKEN, TOKEN, STOP, USAGE]), "disconnected", 2)


async def test_nobody_there() -> None:
    """A refused connection is an error of its own kind."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = await load(f"http://127.0.0.1:{unused.getsockname()[1]}", scenario(requests=2))
    assert [record.status for record in result.records] == ["error:0/connect", "error:0/connect"]


async def test_cancel() -> None:
    """The client leaves after its number of tokens, and the server sees it leave."""
    waiting = asyncio.Event()

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        response = await stream(request, [ROLE, TOKEN])
        await response.write(TOKEN)
        await waiting.wait()
        return response

    async with Server(script).running() as server:
        result = await load(server.url, scenario(more="cancel_after_tokens = 2"))
        await asyncio.wait_for(server.somebody_left.wait(), 20)
    record = result.records[0]
    assert (record.status, len(record.chunks_ns), record.n_output_tokens) == ("cancelled", 2, 2)
    assert record.e2e_ms() is None


async def test_who_names_no_length_leaves_at_it() -> None:
    """The answer counts as one that was got whole; its tokens are its chunks, since the usage comes at the end."""
    never = asyncio.Event()

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        assert "max_tokens" not in await request.json()
        response = await stream(request, [ROLE, TOKEN, TOKEN, TOKEN, TOKEN])
        await never.wait()
        return response

    async with Server(script).running() as server:
        result = await load(server.url, scenario(), max_tokens=False)
        await asyncio.wait_for(server.somebody_left.wait(), 20)
    record = result.records[0]
    assert (record.status, record.n_output_tokens, record.short) == ("ok", len(record.chunks_ns), False)
    assert 3 <= len(record.chunks_ns) <= 4


async def test_cut_before_the_first_token() -> None:
    """A request that waited to the end of the round is there, with its waiting time as a lower bound."""
    never = asyncio.Event()

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        response = await stream(request, [ROLE])
        await never.wait()
        return response

    async with Server(script).running() as server:
        result = await load(server.url, scenario(requests=5, count=2, duration_s=0.3, drain_s=0.2))
        await asyncio.wait_for(server.somebody_left.wait(), 20)
    assert [record.status for record in result.records] == ["unfinished", "unfinished"]
    for record in result.records:
        ttft = record.ttft_ms()
        assert ttft is not None
        assert ttft.bound == ">="
        assert 0 < record.end_ns <= result.elapsed_ns - record.start_ns
    assert result.window_ns == 300_000_000 < result.elapsed_ns


async def test_cut_in_the_stream() -> None:
    """A stream that stalls keeps its first token's time; its end is a lower bound."""
    never = asyncio.Event()

    async def script(request: web.Request, _index: int) -> web.StreamResponse:
        response = await stream(request, [TOKEN, TOKEN])
        await never.wait()
        return response

    result = await check(script, "unfinished", 2, workload=scenario(duration_s=1.0, drain_s=0.2))
    ttft, e2e = result.records[0].ttft_ms(), result.records[0].e2e_ms()
    assert ttft is not None
    assert e2e is not None
    assert (ttft.bound, e2e.bound) == ("", ">=")


async def test_closed_loop_waits_for_its_answer() -> None:
    """A closed-loop instance has one request open, never two."""
    result, server = await run(answering(COMPLETE), scenario(requests=6, count=2))
    assert Counter(record.instance for record in result.records) == {0: 6, 1: 6}
    assert server.n_open_max <= 2


async def test_open_loop_waits_for_nobody() -> None:
    """A Poisson client sends all its requests though none is answered before the last has come."""
    n_requests = 8
    all_here = asyncio.Event()

    async def script(request: web.Request, index: int) -> web.StreamResponse:
        if index + 1 == n_requests:
            all_here.set()
        await all_here.wait()
        return await stream(request, COMPLETE)

    arrival = '{ kind = "poisson", rate_per_s = 1000.0 }'
    result, server = await run(script, scenario(requests=n_requests, arrival=arrival))
    assert [record.status for record in result.records] == ["ok"] * n_requests
    assert server.n_open_max == n_requests
    assert result.late_ns_max >= 0


async def test_warmup_is_not_measured() -> None:
    """Warm-up requests are sent before the load and are in no figure."""
    result, server = await run(answering(COMPLETE), scenario(requests=2, warmup=3))
    assert (len(server.bodies), len(result.records)) == (5, 2)
    assert result.warmup_statuses == ["ok", "ok", "ok"]
    assert server.n_open_max == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_reader_is_indifferent_to_fragments(size: int) -> None:
    """Line ends of both kinds, comments, other fields and missing spaces, in pieces of any size."""
    data = b"".join([b": ping\r\n\r\n", b"event: x\n", ROLE, TOKEN.replace(b"\n", b"\r\n"), TOKEN[:5] + TOKEN[6:], *COMPLETE])
    reader = EventDecoder()
    n_content = sum(reader.feed(data[start : start + size]) for start in range(0, len(data), size))
    assert (n_content, reader.done, reader.error) == (5, True, None)
    assert (reader.n_prompt_tokens, reader.n_output_tokens) == (42, 3)


def test_reader_ignores_what_follows_the_end() -> None:
    """After [DONE] or an error nothing counts."""
    reader = EventDecoder()
    assert reader.feed(TOKEN + DONE + TOKEN) == 1
    assert reader.feed(TOKEN) == 0


def test_reader_counts_thoughts() -> None:
    """Text of a reasoning model counts as text; null, empty and absent text does not."""
    deltas = [b'{"reasoning_content":"hm"}', b'{"content":null}', b'{"content":""}', b"{}", b"null"]
    assert [EventDecoder().feed(b'data: {"choices":[{"delta":%s}]}\n' % delta) for delta in deltas] == [1, 0, 0, 0, 0]


def test_reader_bounds_a_line() -> None:
    """A line without an end is refused before it fills the memory."""
    reader = EventDecoder()
    reader.feed(b"data: " + b"x" * LINE_BYTES_MAX)
    assert reader.error == "line_too_long"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"type":"rate_limit","code":"x"}}', "rate_limit"),
        (b'{"error":{"type":null,"code":"queue_full"}}', "queue_full"),
        (b'{"type":"plain"}', "plain"),
        (b'{"error":"text"}', "unknown"),
        (b"[1]", "unknown"),
        (b"", "unknown"),
        (b'{"error":{"type":"a b\\n|c"}}', "abc"),
    ],
)
def test_error_types(body: bytes, expected: str) -> None:
    """Whatever a server sends as an error, the status is one short word."""
    assert error_type(body) == expected


async def serve(routes: dict[str, Callable[[], web.Response]]) -> web.AppRunner:
    async def handler(request: web.Request) -> web.Response:
        return routes[request.path]() if request.path in routes else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


@asynccontextmanager
async def serving(routes: dict[str, Callable[[], web.Response]]) -> AsyncIterator[str]:
    runner = await serve(routes)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_ready_after_loading() -> None:
    """503 means not yet; a server without /health is judged by /v1/models."""
    answers = [503, 503, 200]
    async with new_session() as session:
        async with serving({"/health": lambda: web.Response(status=answers.pop(0))}) as url:
            await wait_ready(session, url, 20)
        assert answers == []
        async with serving({"/v1/models": lambda: web.json_response({"data": []})}) as url:
            await wait_ready(session, url, 20)


async def test_never_ready() -> None:
    """The wait is bounded and says what the last answer was."""
    async with new_session() as session, serving({"/health": lambda: web.Response(status=500)}) as url:
        with pytest.raises(TargetError, match="not ready within 0 s: /health answers 500"):
            await wait_ready(session, url, 0)


async def test_discover() -> None:
    """The first model is the one asked for; a list without one, or something else, is one clear error."""
    listed: dict[str, Any] = {"data": [{"id": "a", "object": "model"}, {"id": "b"}]}
    async with new_session() as session, serving({"/v1/models": lambda: web.json_response(listed)}) as url:
        assert (await discover(session, url, True)).model == "a"
        listed["data"] = []
        with pytest.raises(TargetError, match="lists no model"):
            await discover(session, url, True)
        listed["data"] = "x"
        with pytest.raises(TargetError, match="not a list of models"):
            await discover(session, url, True)


def test_base_urls() -> None:
    """A trailing slash or /v1 is forgiven, anything else that is no address is not."""
    assert {base_url(f"http://h:1{end}") for end in ("", "/", "/v1", "/v1/")} == {"http://h:1"}
    for text in ("", "h:1", "ftp://h", "http://", "http://h:x", "http://h?q=1"):
        with pytest.raises(TargetError, match="not a server address"):
            base_url(text)
