"""Another server as the policy sees it: what it says that it has, whether it is there, what it costs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.gateway.models.remote.model import MODELS_MAX, context_of
from poise.gateway.request.labels import Label
from poise.scheduler.request import RequestClass
from tests.egress import cloud as c
from tests.gateway.models.remote.upstream import chat, upstream

INTERACTIVE = RequestClass.INTERACTIVE
VLLM = {"id": "a", "object": "model", "max_model_len": 4096}
LLAMA_SERVER = {"id": "a.gguf", "object": "model", "meta": {"n_ctx_train": 8192, "n_vocab": 49_152}}
POISE = {"id": "a", "root": "a", "context_length": 600, "max_model_len": 600}
ANTHROPIC = {"id": "claude-x", "type": "model", "display_name": "X"}


@pytest.mark.parametrize(
    ("card", "n_tokens"), [(VLLM, 4096), (LLAMA_SERVER, 8192), (POISE, 600), (ANTHROPIC, None), ({"max_model_len": "x"}, None)]
)
def test_the_context_is_found_in_the_ways_of_servers(card: dict[str, Any], n_tokens: int | None) -> None:
    """What nobody says is not known."""
    assert context_of(card) == n_tokens


def lists(*cards: Any) -> c.Script:
    return c.is_json(json.dumps({"object": "list", "data": cards}).encode())


async def test_it_learns_what_the_server_has() -> None:
    """Asked with a permit for that, through the door, without anything of a request."""
    async with upstream(model="") as up:
        assert up.model.model_for("") == "cloud"
        up.cloud.answers(lists(VLLM, {"id": "b"}))
        assert await up.model.check()
        assert up.model.names == ("a", "b")
        assert (up.model.model_for(""), up.model.model_for("b"), up.model.model_for("auto")) == ("a", "b", "a")
        assert (up.model.card.name, up.model.card.context_length) == ("a", 4096)
        assert up.model.view(INTERACTIVE).context_tokens == 4096
        entry = up.book.last("egress")
        assert (entry["purpose"], entry["bytes"], up.cloud.last.method, up.cloud.last.path) == ("health", 0, "GET", "/v1/models")
        up.cloud.answers(c.says("x"))
        await up.whole(chat(model="b"))
        assert up.cloud.last.json["model"] == "b"


async def test_the_settings_come_before_what_the_server_says() -> None:
    async with upstream(model="mine", context_tokens=100) as up:
        up.cloud.answers(lists(VLLM))
        assert await up.model.check()
        assert (up.model.model_for("a"), up.model.view(INTERACTIVE).context_tokens) == ("mine", 100)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 3}', b'{"data": [1, {"id": 2}, {"id": ""}]}', b"\xff", b"[" * 99])
async def test_a_list_that_is_none_says_nothing(body: bytes) -> None:
    """The server is there all the same."""
    async with upstream() as up:
        up.cloud.answers(c.is_json(body))
        assert await up.model.check()
        assert (up.model.names, up.model.is_healthy) == ((), True)


async def test_a_list_without_an_end_is_bounded() -> None:
    async with upstream() as up:
        up.cloud.answers(lists(*({"id": f"m{i}"} for i in range(3 * MODELS_MAX)), {"id": "x" * 10_000}))
        assert await up.model.check()
        assert len(up.model.names) == MODELS_MAX


@pytest.mark.parametrize(
    ("script", "is_there", "is_healthy"),
    [
        (c.refuses("404 None"), True, True),
        (c.refuses("405 None"), True, True),
        (c.refuses("401 Who"), False, False),
        (c.refuses("500 No"), False, False),
        (c.dies_after(), False, False),
    ],
)
async def test_it_is_down_from_the_first_failure_to_the_first_answer(script: c.Script, is_there: bool, is_healthy: bool) -> None:
    """A server that has no list is there; one that does not take the key stays away until an operator acts."""
    async with upstream(first_s=0.2) as up:
        up.cloud.answers(script, c.says("x"))
        assert await up.model.check() is is_there
        assert up.model.is_healthy is is_healthy
        if not is_there:
            assert up.model.retry_after_s >= 5
            is_locked = up.model.breaker.locked_by == 401
            assert await up.model.check() is not is_locked
            if is_locked:
                assert up.cloud.n_requests == 1
                up.model.reset()
                assert await up.model.check()
        assert up.model.is_healthy


async def test_nobody_asks_how_it_is_while_nothing_may_leave() -> None:
    async with upstream() as up:
        up.egress.shut("no")
        assert await up.model.check()
        assert (up.cloud.n_requests, up.model.is_healthy) == (0, True)


async def test_the_policy_sees_what_is_in_the_settings() -> None:
    """Prices in nano-units, budgets of who asks."""
    async with upstream({"budget_day": "0.001"}, ceiling="internal", tier=3, capabilities=["tools"]) as up:
        view = up.model.view(INTERACTIVE, "t")
        assert (view.name, view.ceiling, view.leaves_host, view.tier) == ("cloud", Label.INTERNAL, True, 3)
        assert (view.price, view.wait_s, view.is_healthy) == ((2000, 10_000), 0.0, True)
        assert "tools" in view.capabilities
        assert "logprobs" not in view.capabilities
        assert view.has_budget
        await up.ledger.reserve("t", "cloud", "another", 500, 0)
        views = [up.model.view(INTERACTIVE, tenant) for tenant in ("t", "u", None)]
        assert [view.has_budget for view in views] == [False, True, True]


async def test_its_figures_are_told() -> None:
    async with upstream(slots=3) as up:
        shown = up.metrics.exposition(tenants_shown=False).decode()
        assert 'poise_backend_slots{backend="cloud",state="free"} 3.0' in shown
        assert 'poise_backend_queue{backend="cloud",class="background"} 0.0' in shown
        assert 'poise_backend_up{backend="cloud"} 1.0' in shown
