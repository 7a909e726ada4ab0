"""The table of egress: places of a request that have text, triggers that could send one away, and all that makes one sensitive.
Whoever adds a field, a fallback or a label adds a row here; `test_matrix` holds each to each.

    PLACES    a text -> path and body of a request that has it in this place
    TRIGGERS  what makes a server send a request away, if anything lets it: settings, engine, cloud, and what the request needs
    SECRETS   a case number -> a text, headers and model by which a request must stay"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from poise.gateway.supervision.engine import EnginePhase
from poise.scheduler.request import RejectReason
from tests.egress.cloud import Cloud, Exchange, Script, refuses, says
from tests.gateway.fakes import FakeEngine, Submission

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
Body = dict[str, Any]


def chat(*messages: Body, **parameters: Any) -> tuple[str, Body]:
    return CHAT, {"messages": [*messages, {"role": "user", "content": "And now?"}], **parameters}


def function(**changes: Any) -> Body:
    return {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}} | changes}


def call(arguments: str) -> Body:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answer_of_tool(text: str) -> Body:
    return {"role": "tool", "tool_call_id": "call_1", "content": text}


def schema(text: str) -> Body:
    described = {"type": "object", "properties": {"a": {"type": "string", "description": text}}}
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": described}}


OLD = ({"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}, {"role": "user", "content": "a time"})

PLACES: Mapping[str, Callable[[str], tuple[str, Body]]] = {
    "system": lambda t: chat({"role": "system", "content": t}),
    "developer": lambda t: chat({"role": "developer", "content": f"Note: {t}."}),
    "first turn": lambda t: chat({"role": "user", "content": t}, {"role": "assistant", "content": "Ah."}),
    "last turn": lambda t: (CHAT, {"messages": [*OLD, {"role": "user", "content": f"x {t} y"}]}),
    "old turn": lambda t: chat(*OLD, {"role": "assistant", "content": t}),
    "parts": lambda t: chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": t}]}),
    "reasoning": lambda t: chat({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": t}),
    "tool description": lambda t: chat(tools=[function(description=t)]),
    "tool parameter": lambda t: chat(
        tools=[function(parameters={"type": "object", "properties": {"q": {"type": "string", "description": t}}})]
    ),
    "tool enum": lambda t: chat(tools=[function(parameters={"type": "object", "properties": {"q": {"enum": ["a", t]}}})]),
    "tool arguments": lambda t: chat({"role": "user", "content": "a"}, call(json.dumps({"q": t})), answer_of_tool("b")),
    "tool result": lambda t: chat({"role": "user", "content": "a"}, call("{}"), answer_of_tool(t)),
    "stop": lambda t: chat(stop=["\n\n", t]),
    "response schema": lambda t: chat(response_format=schema(t)),
    "prompt": lambda t: (COMPLETION, {"prompt": f"Once {t}"}),
    "one of several prompts": lambda t: (COMPLETION, {"prompt": ["Once", t]}),
}


@dataclass
class Trigger:
    """`engine`: how it answers, or what it is like; `cloud`: what the cloud does first; `settings`: of the section `egress`."""

    model: str = "auto"
    settings: Body = field(default_factory=dict)
    script: Callable[[Submission], None] | None = None
    phase: EnginePhase = EnginePhase.READY
    cloud: Callable[[Cloud], None] | None = None
    body: Body = field(default_factory=dict)
    long: bool = False
    """The prompt is too long for this host."""
    leaves: bool = True
    """A request that nothing keeps is answered by the cloud."""
    chat_only: bool = False


def answers(submission: Submission) -> None:
    submission.accept()
    submission.start()
    submission.say("here")
    submission.finish()


def waits(submission: Submission) -> None:
    """For a minute; who stays is answered all the same."""
    submission.accept(40, 60_000_000)
    if not submission.handle.done:
        submission.start()
        submission.say("here")
        submission.finish()


def computes_long(submission: Submission) -> None:
    """The engine is free, and would compute its prompt for a minute."""
    submission.accept(1, 0, 60_000_000)
    if not submission.handle.done:
        submission.start()
        submission.say("here")
        submission.finish()


def first_refuses(status: str) -> Script:
    """The first request, and answers the others; who asks for its models is told."""
    left = [refuses(status)]

    async def answer(exchange: Exchange) -> None:
        script = left.pop() if left and exchange.method == "POST" else says("x")
        await script(exchange)

    return answer


TRIGGERS: Mapping[str, Trigger] = {
    "nothing": Trigger(script=answers, leaves=False),
    "asked by name": Trigger(model="cloud", script=answers),
    "asked for a model there": Trigger(model="cloud/big", script=answers),
    "long queue": Trigger(settings={"wait_s": 1.0}, script=waits),
    "long queue, streamed": Trigger(settings={"wait_s": 1.0}, script=waits, body={"stream": True}),
    "full queue": Trigger(settings={"wait_s": 1.0}, script=lambda s: s.refuse(RejectReason.QUEUE_FULL.value, 64, 64)),
    "heavy work that would wait for nobody": Trigger(
        settings={"heavy_wait_s": 1.0}, script=computes_long, body={"service_tier": "flex"}
    ),
    "heavy work": Trigger(settings={"heavy_wait_s": 1.0}, script=waits, body={"service_tier": "flex"}),
    "dead engine": Trigger(phase=EnginePhase.RESTARTING),
    "failed engine": Trigger(phase=EnginePhase.FAILED),
    "long context": Trigger(script=answers, long=True),
    "retry": Trigger(model="cloud", script=answers, leaves=False, cloud=lambda cloud: cloud.answers(first_refuses("503 No"))),
    "fallback": Trigger(phase=EnginePhase.RESTARTING, cloud=lambda cloud: cloud.answers(first_refuses("500 No"))),
    "summary": Trigger(script=answers, leaves=False, body={"context_policy": "summarize"}, chat_only=True),
    "background": Trigger(settings={"heavy_wait_s": 1.0}, script=waits, body={"background": True, "service_tier": "flex"}),
}

TEXTS: Mapping[str, Callable[[random.Random], str]] = {
    "card": lambda draw: luhn("4" + digits(draw, 14)),
    "iban": lambda draw: iban(digits(draw, 18)),
    "key": lambda draw: "ghp_" + "".join(draw.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNP23456789", k=36)),
    "email": lambda draw: f"{word(draw)}.{word(draw)}@{word(draw)}.example",
    "phone": lambda draw: f"+49 {draw.choice((30, 40, 89))} {digits(draw, 7, first='23456789')}",
    "private_host": lambda draw: f"10.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}",
    "word": lambda draw: f"Project Nightingale {word(draw)}",
}
"""Texts that the rules find, each another one for each draw."""
WORDS = ["Nightingale"]
CLAIMS = ("header", "model name", "conversation")
"""What else makes a request sensitive, whatever it says."""


def digits(draw: random.Random, n: int, first: str = "123456789") -> str:
    return draw.choice(first) + "".join(draw.choices("0123456789", k=n - 1))


def word(draw: random.Random) -> str:
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=12))


def luhn(number: str) -> str:
    """With the check digit behind it."""
    doubled = [int(c) * (2 - i % 2) for i, c in enumerate(reversed(number))]
    return number + str(-sum(n // 10 + n % 10 for n in doubled) % 10)


def iban(account: str) -> str:
    check = 98 - int(account + "131400") % 97
    return f"DE{check:02d}{account}"


def engine_of(trigger: Trigger) -> FakeEngine:
    engine = FakeEngine(trigger.script)
    engine.state.phase = trigger.phase
    return engine
