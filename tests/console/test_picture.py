"""From what the server tells to what is shown: figures, curves, sizes and ages as texts."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from poise.console.client import Client
from poise.console.frame import frame_of
from poise.console.picture import LIMITS, SAMPLES_MAX, RequestRow, Watch, age, bar, ordered, pair, size, spark
from poise.gateway.explain import words
from poise.gateway.http.pages import PAGE_DIR
from poise.scheduler.bottleneck import Limit
from tests.console.app_client import AppClient
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, says


def shown(picture: Any) -> str:
    console = Console(width=80, no_color=True, file=io.StringIO())
    with console.capture() as captured:
        console.print(frame_of(picture))
    return captured.get()


def test_every_limiting_resource_has_words() -> None:
    """On the terminal, in explanations and on the page; no table has one that there is not."""
    table = re.search(r"const LIMITS = \{(.*?)\};", (PAGE_DIR / "figures.js").read_text(), re.DOTALL)
    assert table is not None
    on_page = set(re.findall(r"^ *(\w+):", table[1], re.MULTILINE))
    assert on_page == set(LIMITS) == set(words.LIMITS) == set(Limit)


async def test_a_picture_of_a_server_that_has_answered() -> None:
    """Times to the first token, between tokens, tokens a second; and it fits 80 columns."""
    app = make_app(FakeEngine(says("four")))
    watch = Watch(AppClient(app))
    await ask(app, "POST", "/v1/chat/completions", chat_body())
    app.history.sample()
    picture = await watch.look()
    interactive = picture.classes[0]
    assert (interactive.name, interactive.counts) == ("interactive", (2, 3, 1, 0))
    assert interactive.ttft.endswith("s")
    assert interactive.itl.endswith("s")
    assert picture.curves[0].values[0] > 0
    assert picture.curves[2].values == (2.0,)
    assert [(b.name, b.text) for b in picture.bars][:2] == [("short slots", "3 of 4, 1 warm"), ("short cells", "210 of 1,200")]
    slow = replace(interactive, ttft=pair(99_990, 99_990), itl=pair(9990, 99_990))
    text = shown(replace(picture, classes=[slow]))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "nothing is cut"
    app.history.sample()
    assert (await watch.look()).curves[0].values[1:] == (0.0,), "only what is new was asked for"


async def test_what_to_look_at_is_told_first() -> None:
    """A finding in the server's own words, with its name in the runbook."""
    app = make_app(FakeEngine())
    watch = Watch(AppClient(app))
    picture = await watch.look()
    assert picture.findings == []
    assert "look" not in shown(picture)
    assert "look  The disk is slow (runbook: disk_slow)" in shown(
        replace(picture, findings=["The disk is slow (runbook: disk_slow)"])
    )


async def test_a_server_that_is_loading_has_a_picture() -> None:
    """No figures yet, and no pools."""
    engine = FakeEngine()
    engine.state.status = engine.state.ready = None
    app = make_app(engine, with_text=False)
    app.history.sample()
    picture = await Watch(AppClient(app)).look()
    assert (picture.bottleneck, picture.bars, picture.classes[0].ttft) == ("not known yet", [], "-")
    assert "no live requests" in shown(picture)


def test_samples_of_another_server_begin_anew() -> None:
    """It was started again: its numbers are lower."""
    watch = Watch(Client("http://127.0.0.1:1"))
    watch.add({"next": 700, "samples": [{"seq": i} for i in range(700)]})
    assert (len(watch.samples), watch.since) == (SAMPLES_MAX, 700)
    watch.add({"next": 2, "samples": [{"seq": 0}, {"seq": 1}]})
    assert [sample["seq"] for sample in watch.samples] == [0, 1]


def test_long_times_are_told_in_seconds() -> None:
    """So that a line still fits."""
    assert (pair(1.0, 999.0), pair(1200.0, 65_000.0), pair(None, None)) == ("1 / 999 ms", "1.20 / 65.00 s", "-")


def row(name: str, state: str, output: int, age_ms: int, request_class: str = "interactive") -> RequestRow:
    return RequestRow(name, request_class, state, 1, 0, output, age_ms, "")


ROWS = [row("a", "running", 5, 100), row("b", "queued", 9, 300), row("c", "running", 7, 200, "background")]


@pytest.mark.parametrize(("by", "names"), [("age", "bca"), ("tokens", "bca"), ("state", "bca"), ("class", "cba")])
def test_orders(by: str, names: str) -> None:
    """Ties are broken in a fixed way, so that nothing jumps."""
    assert "".join(one.id for one in ordered(ROWS, by)) == names
    assert ordered(reversed(ROWS), by) == ordered(ROWS, by)
    assert "".join(one.id for one in ordered([row(one.id, one.state, 0, 0) for one in ROWS], "tokens")) == "abc"


def test_curves_bars_ages_and_sizes_as_text() -> None:
    """A peak survives the narrowing; nothing divides by zero."""
    assert spark([0, 1, 2, 4, 8], 5) == " ▁▂▄█"
    assert spark([0, 0, 8, 0], 2) == " █"
    assert spark([], 5) == spark([1], 0) == ""
    assert spark([0, 0], 9) == "▁▁"
    assert (bar(0.5, 4), bar(0, 2), bar(1, 2)) == ("██░░", "░░", "██")
    assert [age(ms) for ms in (0, 9_999, 10_000, 150_000, 7_200_000, 400_000_000)] == [
        "0.0 s",
        "10.0 s",
        "10 s",
        "2 min",
        "2 h",
        "4 days",
    ]
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]
