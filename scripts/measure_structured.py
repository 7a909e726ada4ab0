"""Measure structured output on a running server: whether answers are valid, and what being held to a form costs whom.

    .venv/bin/python scripts/measure_structured.py http://127.0.0.1:8000 [--schemas 300] [--rounds 8] [--only valid|cost]

Valid: schemas by keyword, others drawn by Hypothesis from what keywords may have, and grammars, at temperature 1.
Counted are answers that ended by `stop` (each is validated), by `length` (each must be a beginning of something valid, byte by
byte; those that were closed are all of it), and schemas that were refused, by what was said.
Cost: the time of a token of a held stream against a free one's, the two taking turns; the gaps of free streams beside held ones
against those beside free ones; and the tokens per second of a schema most of whose tokens are forced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jsonschema_rs
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, grammar_from
from openai import APIStatusError, AsyncOpenAI

BYTES = LLTokenizer("byte")
WORDS = ["red", "green", "blue", "a longer constant", "ü", 'with "quotes"', "line\nbreak"]
N_AT_ONCE = 8


def by_keyword() -> Iterator[dict[str, Any]]:
    """Each keyword with several values, alone and inside an object, an array and an alternative."""
    plain: list[dict[str, Any]] = []
    plain += [{"type": kind} for kind in ("null", "boolean", "integer", "number")]
    plain += [{"const": value} for value in (*WORDS, 7, -1.5, None, True, [1, "a"], {"a": {"b": 1}})]
    plain += [{"enum": WORDS[:n]} for n in (1, 3, 7)] + [{"enum": [1, "1", None, [True]]}]
    plain += [{"type": "string", "minLength": a, "maxLength": b} for a, b in ((0, 4), (3, 9), (10, 10))]
    plain += [{"type": "string", "pattern": p} for p in (r"^[a-z]{3}$", r"^\d{2,4}-[A-F]+$", r"^(yes|no)!?$", r"^.{1,8}$")]
    plain += [{"type": "string", "format": f} for f in ("date", "time", "date-time", "ipv4", "ipv6", "uuid", "email", "uri")]
    plain += [{"type": "integer", "minimum": a, "maximum": b} for a, b in ((0, 9), (-5, 5), (100, 1999))]
    plain += [{"type": "number", "exclusiveMinimum": 0, "maximum": m} for m in (1, 2.5)]
    plain += [{"type": "integer", "multipleOf": m, "minimum": 0, "maximum": 60} for m in (2, 5)]
    plain += [{"type": ["integer", "null"]}, {"anyOf": [{"type": "boolean"}, {"enum": WORDS[:2]}]}]
    plain += [
        {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
        {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 8}]},
    ]
    plain += [{"$ref": "#/$defs/d", "$defs": {"d": {"enum": WORDS[:3]}}}]
    yield from plain
    for i, schema in enumerate(plain):
        if "$ref" in schema:
            continue
        closed = {"additionalProperties": False} if i % 2 else {}
        yield {"type": "object", "properties": {"a": schema, "b": plain[i - 1]}, "required": ["a"], **closed}
        yield {"type": "array", "items": schema, "minItems": 1, "maxItems": 1 + i % 4}
        yield {"anyOf": [schema, {"type": "array", "prefixItems": [schema], "items": False, "minItems": 1}]}
        yield {"type": "object", "patternProperties": {"^k[0-9]$": schema}, "additionalProperties": False, "maxProperties": 2}


def drawn(n: int) -> list[dict[str, Any]]:
    """Schemas drawn by Hypothesis from what keywords may have: many nest, some contradict themselves, some are refused."""
    small = st.integers(0, 6)
    bounds = {f"{bound}{of}": small for bound in ("min", "max") for of in ("Length", "Items", "Properties", "imum")}
    kinds = st.sampled_from(("string", "integer", "number", "boolean", "null", "array", "object"))
    leaf = st.fixed_dictionaries({"type": kinds}, optional=bounds)

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
        several = st.lists(inner, min_size=1, max_size=3)
        objects = {"properties": names, "additionalProperties": st.booleans(), "required": st.lists(st.sampled_from("abx"))}
        arrays = {"items": inner, "prefixItems": several, "uniqueItems": st.booleans()}
        rest = {"anyOf": several, "oneOf": several, "allOf": several, "not": inner, "enum": st.lists(small, min_size=1)}
        return (
            st.fixed_dictionaries({"type": st.just("object")}, optional=objects | bounds)
            | st.fixed_dictionaries({"type": st.just("array")}, optional=arrays | bounds)
            | st.sampled_from(sorted(rest)).flatmap(lambda key: st.fixed_dictionaries({key: rest[key]}))
        )

    found: list[dict[str, Any]] = []

    @seed(1)
    @settings(max_examples=4 * n, phases=[Phase.generate], database=None, deadline=None)
    @given(st.recursive(leaf, nested, max_leaves=6))
    def collect(schema: dict[str, Any]) -> None:
        if len(found) < n and schema not in found:
            found.append(schema)

    collect()
    return found


GRAMMARS: list[tuple[str, Any, str]] = [
    ("guided_regex", pattern, pattern)
    for pattern in (r"[ab]{3}", r"\d{1,3}\.\d", r"(yes|no|perhaps)", r"[A-Z][a-z]{2,8}!", r"x?y*z{2}", r"[^a-z\s]{4}", r"a|bc")
] + [
    ("guided_choice", choices, "|".join(map(re.escape, choices)))
    for choices in (["yes", "no"], WORDS, ["a", "ab", "abc"], [str(n) for n in range(40)])
] + [
    ("grammar", grammar, pattern)
    for grammar, pattern in (
        ('root ::= "a" | "b"', "a|b"),
        ('root ::= [0-9]+ ":" [0-9]', r"\d+:\d"),
        ('root ::= item ("," item)*\nitem ::= "x" | "y"', r"[xy](,[xy])*"),
        ('root ::= "(" root? ")"', r"\(+\)+"),
        ('start: "a" ("b" | "c")+ "d"', r"a[bc]+d"),
        ('start: N ("+" N)~1..3\nN: /[0-9]{1,2}/', r"\d{1,2}(\+\d{1,2}){1,3}"),
        ("start: /[a-f]{2}/ /[0-9]{2}/", r"[a-f]{2}\d{2}"),
        ('start: "<" NAME ">" NAME\nNAME: /[a-z]{1,5}/', r"<[a-z]{1,5}>[a-z]{1,5}"),
        ('start: %json {"type": "boolean"}', "true|false"),
    )
]  # fmt: skip


FORMATS: dict[str, Any] = {"guided_regex": "regex", "guided_choice": "choice", "grammar": "grammar"}


class Asker:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self._client = AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=2, timeout=600)

    async def whole(self, seed: int, max_tokens: int, **form: Any) -> tuple[str, str]:
        """Why it ended, and the text; or "refused" and what was said."""
        messages: Any = [{"role": "user", "content": "Give me an example. Be brief."}]
        try:
            answer = await self._client.chat.completions.create(
                model="default", messages=messages, seed=seed, temperature=1.0, max_tokens=max_tokens, extra_body=form
            )
        except APIStatusError as error:
            return "refused" if error.status_code == 400 else f"status {error.status_code}", error.message
        return str(answer.choices[0].finish_reason), answer.choices[0].message.content or ""

    async def times(self, seed: int, max_tokens: int, **form: Any) -> list[float]:
        """When each token of a stream came."""
        messages: Any = [{"role": "user", "content": "Tell me a long story about a river."}]
        options: Any = {"continuous_usage_stats": True, "include_usage": True}
        came: list[float] = []
        stream = await self._client.chat.completions.create(
            model="default", messages=messages, seed=seed, temperature=1.0, max_tokens=max_tokens, stream=True,
            stream_options=options, extra_body=form,
        )  # fmt: skip
        async for chunk in stream:
            n_tokens = chunk.usage.completion_tokens if chunk.usage else 0
            came += [time.perf_counter()] * (n_tokens - len(came))
        return came


def schema_form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def is_beginning(text: str, grammar: str) -> bool:
    """By the bytes alone, whatever tokens the server's model has. The last character may be cut."""
    data = text.rstrip("\ufffd").encode()
    matcher = LLMatcher(BYTES, grammar)
    return not matcher.is_error() and matcher.validate_tokens(list(data)) == len(data)


def is_whole(text: str, grammar: str) -> bool:
    """Whether a text is all that a grammar asks for."""
    matcher = LLMatcher(BYTES, grammar)
    return is_beginning(text, grammar) and bool(matcher.consume_tokens(list(text.encode()))) and matcher.is_accepting()


async def valid(asker: Asker, n_schemas: int) -> bool:
    """Whether every answer that ended by `stop` was valid, and every one that ended by `length` a beginning of a valid one."""
    schemas = list(by_keyword())[:n_schemas]
    n_written = len(schemas)
    schemas += drawn(max(0, n_schemas - n_written))
    counts: dict[str, Counter[str]] = {"written": Counter(), "drawn": Counter(), "grammars": Counter()}
    refused: Counter[str] = Counter()
    wrong: list[str] = []
    several = asyncio.Semaphore(N_AT_ONCE)

    async def one(kind: str, i: int, form: dict[str, Any], check: Any, grammar: str, shown: str) -> None:
        async with several:
            ended, text = await asker.whole(i, 80, **form)
        is_closed = ended == "length" and is_whole(text, grammar)
        counts[kind]["length, closed" if is_closed else ended] += 1
        if ended == "refused":
            refused[text.partition("cannot be followed: ")[2].partition(". Leave out")[0]] += 1
        elif ended == "stop" and not check(text):
            wrong.append(f"{shown}: {text!r}")
        elif ended == "length" and not is_beginning(text, grammar):
            wrong.append(f"{shown}: no beginning: {text!r}")
        elif ended not in ("stop", "length"):
            wrong.append(f"{shown}: {ended} {text}")

    def fits(schema: dict[str, Any]) -> Any:
        return lambda text: jsonschema_rs.is_valid(schema, json.loads(text))

    tasks = []
    for i, s in enumerate(schemas):
        grammar = LLMatcher.grammar_from_json_schema(s, overrides={"whitespace_flexible": False})
        tasks.append(one("written" if i < n_written else "drawn", i, schema_form(s), fits(s), grammar, json.dumps(s)))
    for i, (name, value, pattern) in enumerate(GRAMMARS):
        grammar = grammar_from(FORMATS[name], value if isinstance(value, str) else json.dumps(value))
        tasks.append(one("grammars", i, {name: value}, lambda text, p=pattern: re.fullmatch(p, text), grammar, str(value)))
    await asyncio.gather(*tasks)
    for kind, ends in counts.items():
        print(f"{kind:<10}" + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))
    for said, n in refused.most_common():
        print(f"  refused {n:>3}: {said}")
    for line in wrong:
        print(f"  WRONG: {line}")
    return not wrong


STORY = schema_form({"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 30})
FORCED = schema_form(
    {"type": "array", "minItems": 20, "items": {
        "type": "object",
        "properties": {"temperature_in_celsius": {"type": "boolean"}, "source_of_it": {"const": "the weather station"}},
        "required": ["temperature_in_celsius", "source_of_it"], "additionalProperties": False}}
)  # fmt: skip
FREE = {"ignore_eos": True}


def per_token_ms(came: list[float]) -> float:
    return 1000 * (came[-1] - came[0]) / max(1, len(came) - 1)


async def cost(asker: Asker, rounds: int) -> None:
    """Streams of 100 tokens; the kinds take turns."""
    alone: dict[str, list[float]] = {"free": [], "held": [], "forced": []}
    beside: dict[str, list[float]] = {"free": [], "held": [], "forced": []}
    forms = {"free": FREE, "held": STORY, "forced": FORCED}
    for i in range(rounds):
        for name, form in forms.items():
            alone[name].append(per_token_ms(await asker.times(i, 100, **form)))
        for name, form in forms.items():
            streams = await asyncio.gather(
                *(asker.times(100 + i, 100, **FREE) for _ in range(4)), *(asker.times(i, 100, **form) for _ in range(4))
            )
            for came in streams[:4]:
                beside[name] += [1000 * (b - a) for a, b in pairwise(came)]
    free = statistics.median(alone["free"])
    for name, values in alone.items():
        ms = statistics.median(values)
        print(f"alone, {name:<7}{ms:>7.2f} ms a token ({1000 / ms:.0f} a second), {ms / free:.3f} of a free one")
    base = [statistics.quantiles(beside["free"], n=100)[k] for k in (49, 98)]
    for name, gaps in beside.items():
        p50, p99 = (statistics.quantiles(gaps, n=100)[k] for k in (49, 98))
        print(f"gaps of 4 free beside 4 {name:<7} p50 {p50:.1f}, p99 {p99:.1f} ms ({p50 / base[0]:.3f}, {p99 / base[1]:.3f})")


async def run(arguments: argparse.Namespace) -> int:
    asker = Asker(arguments.url)
    is_valid = arguments.only == "cost" or await valid(asker, arguments.schemas)
    if arguments.only != "valid":
        await cost(asker, arguments.rounds)
    return 0 if is_valid else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("url", help="of a running server")
    parser.add_argument("--schemas", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", choices=("valid", "cost"))
    raise SystemExit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
