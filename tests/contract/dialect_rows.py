"""What the contract suite of dialects asks of each: requests to read, and records to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poise.gateway.records.moments import End
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import ContextNote, Heading, Logprob, Notes
from poise.gateway.records.writer import MakeWriter
from poise.gateway.request.generate import AnswerOptions
from poise.gateway.request.refusals import ApiError, internal_error, invalid_value, server_stopping
from poise.gateway.text.answers import EntryKind
from poise.scheduler.request import RequestClass

_HI = {"role": "user", "content": "Hi"}
_PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
_EVERYTHING = {
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True, "segments": True},
    "stop": ["END", "\n\n"],
    "seed": 7,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": -1,
    "min_p": 0.1,
    "presence_penalty": 1,
    "frequency_penalty": -1,
    "repeat_penalty": 1.5,
    "logit_bias": {"7": -100, "5": 2},
    "ignore_eos": True,
    "min_tokens": 2,
    "service_tier": "flex",
    "queue_timeout": 1.5,
    "background": True,
    "user": "me",
}
_REFUSED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a parameter that is not supported": {"model": "m", "stop_token_ids": [1]},
    "a model that is no name": {"model": 7},
}


def _chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages or [_HI]), **more}


def _text(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, **more}


_F = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
_TOOLS = [{"type": "function", "function": _F}, {"type": "function", "name": "g", "strict": True}]
_MADE = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}


REQUESTS: dict[str, dict[str, dict[str, Any]]] = {
    "chat": {
        "the least": _chat(),
        "everything": _chat(_HI, **_EVERYTHING, max_completion_tokens=9, logprobs=True, top_logprobs=3),
        "a conversation": _chat({"role": "system", "content": "S"}, _PARTS, {"role": "assistant", "content": "x"}, _HI),
        "a context policy and a template": _chat(context_policy="trim", template="support"),
        "neutral values": _chat(n=None, tools=None, response_format={"type": "text"}, service_tier="auto"),
        "what has no effect": _chat(_HI | {"id": 1}, metadata={}, temprature=1, stream_options={"include_usage": True}),
        "other names and numbers": _chat({"role": "assistant"}, n_predict=-1, seed=-1, top_p=0, random_seed=-1.0),
        "a schema": _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}),
        "two structures": _chat(guided_json={}, grammar="start: x"),
        "tools": _chat(tools=_TOOLS, tool_choice="required", parallel_tool_calls=False),
        "a tool by name": _chat(tools=_TOOLS, tool_choice={"type": "function", "function": {"name": "f"}}),
        "allowed tools": _chat(
            tools=_TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "g"}]}}
        ),
        "functions": _chat(functions=[_F], function_call={"name": "f"}),
        "calls and results": _chat(
            _HI,
            {"role": "assistant", "content": None, "tool_calls": [_MADE]},
            {"role": "tool", "tool_call_id": "call_1", "content": "c"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{"}},
            {"role": "function", "name": "f", "content": "d"},
        ),
        "a tool that there is not": _chat(tools=_TOOLS, tool_choice={"type": "function", "function": {"name": "h"}}),
        "two tools of one name": _chat(tools=[*_TOOLS, {"type": "function", "function": _F}]),
        "no messages": {"model": "m", "messages": []},
        "a role that there is not": _chat({"role": "robot", "content": "x"}),
        "two allowances": _chat(max_tokens=1, max_completion_tokens=2),
        "what belongs to completions": _chat(prompt="x"),
        "too many tokens": _chat(max_tokens=1_000_000),
        **_REFUSED,
    },
    "text_completion": {
        "the least": _text("Once"),
        "everything": _text("Once", **_EVERYTHING, max_tokens=9, logprobs=3),
        "an echo": _text("Once", echo=True, logprobs=0, max_tokens=0),
        "a suffix": _text("Once", suffix="after"),
        "several texts": _text(["a", "b"]),
        "token ids": _text([1, 2, 3]),
        "several lists of token ids": _text([[1], [2, 3]], n=2),
        "best of as many as there are": _text("x", n=2, best_of=2),
        "what has no effect": _text("x", model=None, metadata={}, temprature=1, user="me"),
        "too many choices": _text(["x"] * 5, n=2),
        "what belongs to chats": _text("x", messages=[_HI]),
        "no prompt": {"model": "m"},
        **_REFUSED,
    },
}
"""By the name of the dialect. What it cannot read is recorded as the error."""

BESIDE_THE_SCHEMA = ("neutral values", "what has no effect")
"""What is taken because it asks for nothing or has no effect, and not described."""

REFUSALS: dict[str, ApiError] = {
    "a wrong value": invalid_value("n", "be at most 8", 9),
    "come back later": server_stopping(),
    "a bug": internal_error("err-1"),
}


class Script:
    """A record that is written by hand. Times are of no account."""

    def __init__(self, make_writer: MakeWriter, n: int, options: AnswerOptions) -> None:
        origin = Origin("req-1", "a", RequestClass.INTERACTIVE, "prompt", 0.0)
        self.record = Record(origin, Heading("id-1", 1_700_000_000, "m", "fp_1"), n, make_writer, options)
        self.record.n_prompt, self.record.is_open = 4, True

    def say(self, *texts: str, choice: int = 0) -> Script:
        for text in texts:
            self.record.append(choice, text, (), 0.0)
        return self

    def call(self, name: str, *arguments: str, choice: int = 0) -> Script:
        """A call of a function, its arguments in pieces."""
        self.record.append(choice, name, (), 0.0, EntryKind.CALL_NAME)
        for text in arguments:
            self.record.append(choice, text, (), 0.0, EntryKind.CALL_ARGUMENTS)
        return self

    def weigh(self, text: str, choice: int = 0) -> Script:
        """A token with its log probability, and another one that was likely."""
        self.record.wants_logprobs = True
        entry = Logprob(text.encode(), -0.5, ((b"\xff", -1.5),), 0, len(text))
        self.record.append(choice, text, [entry], 0.0)
        return self

    def note(self, what: str, choice: int | None = 0, **detail: Any) -> Script:
        self.record.downgraded |= what == "downgrade"
        self.record.note(what, choice, **detail)
        return self

    def end(self, reason: str = "stop", text: str = "", choice: int = 0) -> Script:
        self.record.end_choice(End(self.record.n_entries, choice, reason, text, ()), reason)
        return self

    def close(self, failure: ApiError | None = None) -> Record:
        self.record.ended_s, self.record.failure = 1.0, failure
        return self.record


_NOTE = Notes(ContextNote(policy="trim", dropped_turns=1, dropped_messages=2, dropped_tokens=30, prompt_tokens=4))


def _made(script: Script) -> Script:
    script.record.notes = _NOTE
    return script


def _interrupted(script: Script) -> Script:
    script.record.place = (3, 1200)
    script.note("summarizing", None, turns=2).note("first_token").say("a")
    for what, why in (("pause", "turn"), ("resume", ""), ("downgrade", "output"), ("lost", ""), ("recover", "12")):
        script.note(what, why=why) if why else script.note(what)
    return script.say("b")


SCRIPTS: dict[str, tuple[int, AnswerOptions, Callable[[Script], Record]]] = {
    "two tokens": (1, AnswerOptions(), lambda s: s.say("Hel", 'lo "you"').end().close()),
    "held back until the end": (1, AnswerOptions(), lambda s: s.say("a", "").end("length", "EN").close()),
    "nothing at all": (1, AnswerOptions(), lambda s: s.end().close()),
    "usage": (1, AnswerOptions(include_usage=True), lambda s: s.say("a").end().close()),
    "usage all the time": (
        2,
        AnswerOptions(include_usage=True, continuous_usage=True),
        lambda s: s.say("a").say("b", choice=1).end().end(choice=1).close(),
    ),
    "two choices": (
        2,
        AnswerOptions(service_tier="priority"),
        lambda s: s.say("a").say("b", "c", choice=1).end(choice=1).say("d").end("length").close(),
    ),
    "log probabilities": (1, AnswerOptions(), lambda s: s.weigh("a").weigh("é").end().close()),
    "interrupted": (1, AnswerOptions(), lambda s: _interrupted(s).end().close()),
    "interrupted, of two choices": (2, AnswerOptions(), lambda s: s.say("a").note("swap", 1).end().end(choice=1).close()),
    "how it was made": (1, AnswerOptions(), lambda s: _made(s).say("a", "b").end().close()),
    "segments": (1, AnswerOptions(segments=True), lambda s: s.say("# Two\n", "One. ", "Two.").end().close()),
    "calls": (
        1,
        AnswerOptions(),
        lambda s: s.call("weather", '{"city"', ':"Rome"}').call("time", "{}").call("now").end().close(),
    ),
    "text and a call, of two choices": (
        2,
        AnswerOptions(include_usage=True),
        lambda s: s.say("Wait.").call("f", "{", "}").call("f", "{}", choice=1).end().end(choice=1).close(),
    ),
    "a call that was cut": (1, AnswerOptions(), lambda s: s.call("f", '{"a": ').end("length").close()),
    "a call in the older form": (1, AnswerOptions(legacy_calls=True), lambda s: s.call("f", "{", "}").end().close()),
    "cancelled": (1, AnswerOptions(), lambda s: s.say("a").end("cancelled").close()),
    "failed": (1, AnswerOptions(include_usage=True), lambda s: s.say("a").close(internal_error("err-2"))),
}
"""How many choices, how they are to be written, and what happens."""
