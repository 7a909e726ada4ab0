"""What a request held is given back when it ends, however it ends: its prompt as text and as ids, its scope with the key, its
work.

The collector is off: what only it could find would stay until it looks, which may be minutes. Each way to end is a coroutine of
its own, which has returned when the test looks around in everything that is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from poise.audit.log import AuditLog
from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.http.stream import EventStream, while_connected
from poise.gateway.intake import Call
from poise.gateway.models.local.choice import Choice
from poise.gateway.models.local.generation import ChoiceRequest, Generation
from poise.gateway.models.local.job import LocalJob, SummaryFirst
from poise.gateway.models.local.prompts import Plan
from poise.gateway.records.reader import Reader
from poise.gateway.records.record import Follower
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.supervision import handover
from poise.gateway.supervision.engine import SERVER_STOPPING, RequestHandle
from poise.gateway.tenancy.auditing import Audit, RequestEntry
from poise.wire.text import Message
from poise.wire.to_engine import Submit
from tests.gateway.fakes import OPERATOR, WAIT_S, Exchange, ask, chat_body, exchange, make_app, prompt_body, unpaced
from tests.gateway.handover_engine import HandoverEngine
from tests.gateway.http.serving import served
from tests.gateway.http.test_backpressure import connect

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KEY, MARK = "sk-of-nobody-else", "xyzzy-plugh-"
PROMPT = MARK * 20
SECRET_BYTES = (MARK * 3).encode()
CELLS = 4000


class Scope(dict[str, Any]):
    """A connection's scope that can be told from other dicts."""


KINDS = (
    Generate, Conversation, Message, Plan, ChoiceRequest, Call, Generation, Choice, RequestHandle, RequestEntry,
    Request, EventStream, Reader, Follower, LocalJob, SummaryFirst, Submit, Scope, handover._Live,
)  # fmt: skip


class World:
    """A gateway, and its engine's words."""

    def __init__(self, settings: Settings, audit: Audit | None) -> None:
        self.engine = HandoverEngine(cells=CELLS)
        self.app: Gateway = make_app(self.engine, settings, audit=audit)

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Exchange:
        made = exchange(self.app, method, path, body, {"authorization": f"Bearer {KEY}"} | (headers or {}))
        made.scope = Scope(made.scope)
        return made.open()

    async def begin(self, stream: bool = True, headers: dict[str, str] | None = None, **parameters: Any) -> Exchange:
        """A chat that decodes."""
        n_before, n = self.engine.n_submitted, parameters.get("n", 1)
        asked = self.send("POST", CHAT, chat_body(PROMPT, stream=stream, **parameters), headers)
        await self.engine.until_submitted(n_before + n)
        for request_id in range(n_before + 1, n_before + n + 1):
            self.engine.start(request_id)
            self.engine.say(request_id, "One. ")
        return asked

    async def response_id(self) -> str:
        listed = await self.send("GET", "/v1/requests").reply()
        return str(listed.json()["data"][0]["id"])


Way = Callable[[World], Awaitable[None]]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


@way
async def stop(world: World) -> None:
    asked = await world.begin(logprobs=True, top_logprobs=2)
    world.engine.finish(1)
    assert (await asked.reply()).events[-1] == "[DONE]"


@way
async def length(world: World) -> None:
    asked = await world.begin(stream=False)
    world.engine.finish(1, "length")
    assert (await asked.reply()).status == 200


@way
async def stop_string(world: World) -> None:
    asked = await world.begin(stop=["END"])
    world.engine.say(1, "so END of it")
    assert world.engine.aborted == [1]
    assert (await asked.reply()).status == 200


@way
async def several_choices(world: World) -> None:
    asked = await world.begin(n=3)
    for request_id in (2, 1, 3):
        world.engine.finish(request_id)
    assert (await asked.reply()).status == 200


@way
async def prompts_of_ids(world: World) -> None:
    ids = list(PROMPT.encode())
    asked = world.send("POST", COMPLETIONS, prompt_body([ids, ids], stream=True, max_tokens=5))
    await world.engine.until_submitted(2)
    for request_id in (1, 2):
        world.engine.start(request_id)
        world.engine.say(request_id, "so")
        world.engine.finish(request_id)
    assert (await asked.reply()).status == 200


@way
async def client_leaves_stream(world: World) -> None:
    asked = await world.begin()
    await asked.start()
    asked.disconnect()
    await asked.ended()
    assert world.engine.aborted == [1]


@way
async def client_leaves_whole(world: World) -> None:
    asked = await world.begin(stream=False)
    asked.disconnect()
    await asked.ended()
    assert world.engine.aborted == [1]


@way
async def client_leaves_in_the_queue(world: World) -> None:
    asked = world.send("POST", CHAT, chat_body(PROMPT, stream=True))
    await world.engine.until_submitted()
    asked.disconnect()
    await asked.ended()
    assert world.engine.aborted == [1]


@way
async def cancelled_by_its_owner(world: World) -> None:
    asked = await world.begin()
    path = f"/v1/requests/{await world.response_id()}/cancel"
    assert (await world.send("POST", path).reply()).status == 200
    assert (await asked.reply()).status == 200


@way
async def cancelled_by_an_operator(world: World) -> None:
    asked = await world.begin(stream=False)
    path = f"/admin/requests/{await world.response_id()}/cancel"
    assert (await ask(world.app, "POST", path, headers=OPERATOR)).status == 200
    assert (await asked.reply()).status == 200


@way
async def not_json(world: World) -> None:
    assert (await world.send("POST", CHAT, b'{"messages": "' + PROMPT.encode()).reply()).status == 400


@way
async def wrong_parameter(world: World) -> None:
    assert (await world.send("POST", CHAT, chat_body(PROMPT, temperature=-1)).reply()).status == 400


@way
async def wrong_model(world: World) -> None:
    assert (await world.send("POST", CHAT, chat_body(PROMPT) | {"model": "other"}).reply()).status == 404


@way
async def too_long(world: World) -> None:
    reply = await world.send("POST", CHAT, chat_body(PROMPT * 50)).reply()
    assert reply.error["code"] == "context_length_exceeded"


@way
async def without_an_engine(world: World) -> None:
    world.engine.close()
    assert (await world.send("POST", CHAT, chat_body(PROMPT)).reply()).status == 503


@way
async def refused_by_the_engine(world: World) -> None:
    for stream in (True, False):
        asked = world.send("POST", CHAT, chat_body(PROMPT, stream=stream))
        await world.engine.until_submitted(1 + (not stream))
        world.engine.refuse(world.engine.n_submitted)
        assert (await asked.reply()).status == 429


@way
async def queue_timeout(world: World) -> None:
    asked = world.send("POST", CHAT, chat_body(PROMPT, queue_timeout=1.0, stream=False))
    await world.engine.until_submitted()
    world.engine.accept(1)
    world.engine.finish(1, "expired")
    assert (await asked.reply()).status in (408, 429, 503)


@way
async def failed_in_the_engine(world: World) -> None:
    for stream in (True, False):
        asked = await world.begin(stream=stream)
        world.engine.finish(world.engine.n_submitted, "failed")
        await asked.reply()


@way
async def a_bug_in_the_gateway(world: World) -> None:
    asked = await world.begin(stream=False)
    world.engine.say(1, [10**6])  # no such token
    assert (await asked.reply()).status == 500


@way
async def quarantined(world: World) -> None:
    asked = await world.begin()
    world.engine.die(1)
    world.engine.die(1)
    assert "request_quarantined" in (await asked.reply()).events[-1]
    assert len(world.engine.quarantined()) == 1


@way
async def engine_lost(world: World) -> None:
    asked = await world.begin(stream=False)
    world.engine.die()
    world.engine.die()
    assert (await asked.reply()).status == 503


@way
async def server_stopping(world: World) -> None:
    whole, fresh = await world.begin(), world.send("POST", CHAT, chat_body(PROMPT))
    await world.engine.until_submitted(2)
    world.engine.end_all(SERVER_STOPPING, "bye")
    assert (await whole.reply()).status == 200
    assert (await fresh.reply()).status == 503


def long_talk(**parameters: Any) -> dict[str, Any]:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": PROMPT} for i in range(23)]
    return {"model": "toy", "messages": messages, "context_policy": "summarize", "max_tokens": 100, **parameters}


async def summarizing(world: World, stream: bool) -> Exchange:
    asked = world.send("POST", CHAT, long_talk(stream=stream))
    await world.engine.until_submitted()
    assert world.engine.background == {1}
    world.engine.start(1)
    return asked


@way
async def with_a_summary(world: World) -> None:
    asked = await summarizing(world, stream=True)
    n = 1
    while n in world.engine.background:
        world.engine.say(n, "They talked.")
        world.engine.finish(n)
        n += 1
        await world.engine.until_submitted(n)
        world.engine.start(n)
    world.engine.say(n, "Well.")
    world.engine.finish(n)
    assert (await asked.reply()).text == "Well."


@way
async def a_summary_that_fails(world: World) -> None:
    for stream in (True, False):
        world.engine.background.clear()
        asked = world.send("POST", CHAT, long_talk(stream=stream))
        await world.engine.until_submitted(1 + (not stream))
        world.engine.start(world.engine.n_submitted)
        world.engine.finish(world.engine.n_submitted, "failed")
        await asked.reply()


@way
async def client_leaves_its_summary(world: World) -> None:
    asked = await summarizing(world, stream=True)
    await asked.start()
    asked.disconnect()
    await asked.ended()
    assert world.engine.aborted == [1]


@way
async def in_the_background(world: World) -> None:
    asked = await world.begin(background=True)
    await asked.start()
    asked.disconnect()
    await asked.ended()
    world.engine.finish(1)


@way
async def read_again(world: World) -> None:
    asked = await world.begin()
    world.engine.finish(1)
    await asked.reply()
    again = await world.send("GET", f"/v1/requests/{await world.response_id()}/stream?from=0").reply()
    assert again.text == "One. "
    left = world.send("GET", f"/v1/requests/{await world.response_id()}/explanation")
    assert (await left.reply()).status == 200


@way
async def erased(world: World) -> None:
    asked = await world.begin()
    world.engine.finish(1)
    await asked.reply()
    reply = await world.send("DELETE", f"/v1/requests/{await world.response_id()}").reply()
    assert reply.status == 200


def alive(kinds: tuple[type, ...] = KINDS) -> Counter[str]:
    """How many objects of each kind there are, garbage included."""
    wanted = set(kinds)
    return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if kind in wanted)


def is_secret(held: Any) -> bool:
    """It has the prompt in it, as text, as bytes or as ids, or the key as it came."""
    if held is PROMPT or held is SECRET_BYTES:
        return False
    if type(held) is str:
        return MARK * 3 in held or f"Bearer {KEY}" in held
    if type(held) in (bytes, bytearray):
        return SECRET_BYTES in held or b"Bearer " + KEY.encode() in held
    if type(held) is list and len(held) >= len(PROMPT) and type(held[-1]) is int:
        return SECRET_BYTES in bytes(i for i in held if type(i) is int and 0 <= i < 256)
    return False


def secrets() -> list[str]:
    """What is in some object's hands."""
    found = []
    for held in gc.get_referents(*gc.get_objects()):
        parts: Iterable[Any] = [held]
        if type(held) in (dict, tuple) and not gc.is_tracked(held):
            parts = held.values() if type(held) is dict else held
        found += [f"{type(part).__name__} of {len(part)}" for part in parts if is_secret(part)]
    return found


@pytest.fixture
def no_collector() -> Iterator[None]:
    """And whatever was there before is not looked at."""
    gc.collect()
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


async def live_through(name: str, folder: Path) -> World:
    """A world in which that has happened, and in which prompts are to be put on record."""
    birds = {"auth": {"keys": {"birds": KEY}}, "tenants": {"birds": {"content_log": True}}}
    settings = Settings.model_validate(unpaced().model_dump() | birds)
    log = AuditLog(folder, b"k" * 32, rotate_bytes=1 << 20, keep_days=1)
    world = World(settings, Audit(settings, log))
    await WAYS[name](world)
    for _ in range(3):  # what was cancelled has its last turn
        await asyncio.sleep(0)
    log.close()
    return world


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.usefixtures("no_collector")
async def test_the_end_gives_back_what_the_request_held(name: str, tmp_path: Path) -> None:
    """Kept are answers and counts: no prompt, no scope, no key, no work, and nothing that waits for the collector."""
    world = await live_through(name, tmp_path)
    assert alive() == Counter()
    assert secrets() == []
    assert world.engine.n_live == 0


async def test_nothing_that_outlives_a_server_has_it_either(tmp_path: Path) -> None:
    """Caches of modules and libraries, handlers of logs."""
    for name in WAYS:
        await live_through(name, tmp_path / name)
    gc.collect()
    assert secrets() == []


async def test_what_is_looked_for_would_be_found() -> None:
    """A live request has all of it."""
    settings = unpaced()
    world = World(settings, Audit(settings))
    asked = await world.begin(stream=False)
    assert alive().keys() >= {"Call", "Generation", "Choice", "Scope", "Request", "Submit", "Follower"}
    assert any(found.startswith("list") for found in secrets())
    assert any(found.startswith("bytes") for found in secrets())
    world.engine.finish(1)
    await asked.reply()


@pytest.mark.usefixtures("no_collector")
async def test_an_error_does_not_keep_the_frames_that_it_went_through() -> None:
    """Nor what is in them: the task that raised it has it, and its traceback has who waited for the task."""

    async def gone() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def fails() -> None:
        raise ValueError

    async def waits(scope: Scope) -> None:
        assert scope is not None
        await while_connected(gone, fails())

    with contextlib.suppress(ValueError):
        await waits(Scope())
    await asyncio.sleep(0)
    assert alive() == Counter()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("ending", ["whole", "stream", "stuck"])
async def test_a_connection_that_stays_open_holds_nothing_of_its_last_request(ending: str) -> None:
    """Clients keep theirs for minutes. One that takes nothing loses it, and the request is over."""
    reader = {"unsent_bytes_max": 4096, "stall_swap_s": 0.05, "stall_end_s": 0.2}
    streams = {"streams": {"send_buffer_bytes": 4096, "interactive": reader}}
    settings = Settings.model_validate(unpaced().model_dump() | streams)
    world = World(settings, Audit(settings))
    body = chat_body(PROMPT, stream=ending != "whole")
    async with served(world.app, settings) as port:
        client = await connect(port, "POST", CHAT, body, f"Authorization: Bearer {KEY}\r\n")
        await world.engine.until_submitted()
        world.engine.start(1)
        if ending == "stuck":
            while not world.engine.aborted:
                world.engine.say(1, "word " * 20)
                await asyncio.sleep(0.001)
        else:
            world.engine.finish(1)
            while b"\r\n\r\n" not in await asyncio.get_running_loop().sock_recv(client, 1 << 16):
                pass
        del body
        await until_nothing_is_left()
        client.close()


async def until_nothing_is_left() -> None:
    """The end of a connection takes a few turns of the loop."""
    for _ in range(int(WAIT_S / 0.05)):
        if not (alive() or secrets()):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{alive()} and {secrets()} are left")
