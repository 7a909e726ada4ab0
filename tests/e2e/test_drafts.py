"""Drafts of the real model: the official client's `prediction`, what is told of guesses, and an engine that is killed in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from poise.gateway.supervision.supervisor import ENGINE_COMMAND
from tests.e2e.server import PoiseServer, run_poise

pytestmark = pytest.mark.slow
# How much is drafted is for the cost of rows to say, which nobody has measured on these servers: some of it is enough here.

LETTER = (
    "Dear Mrs Carter, our technician will come on Thursday, 20 February, between 8 and 10 in the morning. Please make sure that "
    "somebody is at home and that the radiator in the kitchen can be reached. You do not have to pay anything for the repair."
)
ASKED: list[Any] = [{"role": "user", "content": f"{LETTER}\n\nCopy this letter word for word."}]


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    server = PoiseServer.start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: PoiseServer) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def counted(server: PoiseServer) -> dict[str, int]:
    found = re.findall(r'poise_draft_tokens_total\{outcome="(\w+)"\} (\S+)', server.get("/metrics")[1])
    return {how: int(float(n)) for how, n in found}


def test_a_prediction_is_counted_and_explained(server: PoiseServer, client: OpenAI) -> None:
    """In usage, metrics and the explanation; the three agree."""
    done = client.chat.completions.create(
        model="default", messages=ASKED, temperature=0, max_tokens=80, prediction={"type": "content", "content": LETTER}
    )
    assert done.usage is not None
    details = done.usage.completion_tokens_details
    assert details is not None
    accepted, rejected = details.accepted_prediction_tokens or 0, details.rejected_prediction_tokens or 0
    assert 0 < accepted < done.usage.completion_tokens
    expected = {"accepted": accepted, "rejected": rejected}
    server.eventually(lambda: counted(server) == expected, f"metrics that say {expected}")
    explanation = json.loads(run_poise("explain", done.id, "--json", "--url", server.url).stdout)
    assert explanation["figures"]["drafted_tokens"] == accepted + rejected
    assert any(f"{accepted:,} came true" in sentence for sentence in explanation["sentences"])


def test_an_engine_that_is_killed_in_a_draft_costs_no_token(server: PoiseServer, client: OpenAI) -> None:
    """The next one makes its guesses of the same text; tokens of the whole life are counted, and none comes twice."""
    stream = client.chat.completions.create(
        model="default", messages=ASKED, temperature=0, max_tokens=90, stream=True, stream_options={"include_usage": True}
    )
    text, usage, n_events = "", None, 0
    for event in stream:
        usage = event.usage or usage
        if event.choices and event.choices[0].delta.content:
            text += event.choices[0].delta.content
            n_events += 1
            if n_events == 8:
                server.child(ENGINE_COMMAND[-1]).kill()
    whole = client.chat.completions.create(model="default", messages=ASKED, temperature=0, max_tokens=90)
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.accepted_prediction_tokens
    said = whole.choices[0].message.content or ""
    n_alike = next((i for i, (a, b) in enumerate(zip(text, said, strict=False)) if a != b), min(len(text), len(said)))
    assert n_alike > 60, (text, said)
