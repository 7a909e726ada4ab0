"""The live screen of `poise top`, driven by its keys, over the real application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from textual.pilot import Pilot
from textual.widgets import DataTable, Label, Sparkline, Static

from poise.config import Settings
from poise.console.picture import Watch
from poise.console.screen import Panel, Question, TopApp
from poise.gateway.app import Gateway
from tests.console.app_client import AppClient
from tests.gateway.fakes import Exchange, FakeEngine, Submission, chat_body, exchange, make_app

CHAT = "/v1/chat/completions"
NEVER_S = 3600.0


@dataclass
class Desk:
    """A screen that looks when it is told to."""

    pilot: Pilot[None]
    top: TopApp
    client: AppClient

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def settle(self) -> None:
        """Until nothing is being done but waiting for the next look."""
        await self.pilot.pause()
        if at_work := [worker for worker in self.top.workers if worker.name != "look"]:
            await self.top.workers.wait_for_complete(at_work)
        await self.pilot.pause()

    async def look(self) -> None:
        await self.top.look()
        await self.pilot.pause()

    def text(self, selector: str) -> str:
        return str(self.top.screen.query_one(selector, Static).visual)

    def rows(self) -> list[list[str]]:
        table = self.top.screen_stack[0].query_one("#requests", DataTable)
        return [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]


@asynccontextmanager
async def desk(app: Gateway, key: str = "") -> AsyncIterator[Desk]:
    client = AppClient(app, key)
    top = TopApp(Watch(client), NEVER_S)
    async with top.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        made = Desk(pilot, top, client)
        await made.look()
        yield made


async def running(app: Gateway, engine: FakeEngine, text: str, key: str = "") -> tuple[Exchange, Submission]:
    """A stream that has said `text`."""
    asked = exchange(app, "POST", CHAT, chat_body(stream=True), headers={"x-api-key": key}).open()
    request = await engine.submitted(len(engine.submissions) + 1)
    request.accept()
    await asked.start()
    request.start()
    request.say(text)
    return asked, request


async def end(*all_of: tuple[Exchange, Submission]) -> None:
    for asked, request in all_of:
        if not request.handle.done:
            request.finish()
        await asked.ended()


async def test_the_screen_shows_the_server() -> None:
    """Head, classes, curves, bars, memory and requests; a look later, what has changed."""
    engine = FakeEngine()
    app = make_app(engine)
    first = await running(app, engine, "Hello")
    app.history.sample()
    async with desk(app) as seen:
        assert "toy, ready" in seen.text("#head")
        assert "level normal" in seen.text("#head")
        assert seen.text("#curve-0").startswith("tokens/s ")
        assert seen.top.query_one("#spark-2", Sparkline).data == (2.0,)
        assert "host store 570 B" in seen.text("#memory")
        assert [row[1:6] for row in seen.rows()] == [["interactive", "running", "21", "0", "5"]]
        second = await running(app, engine, "Hi", "else")
        engine.state.detail = ""
        await seen.look()
        assert [row[5] for row in seen.rows()] == ["5", "2"]
        assert seen.rows()[1][7].startswith("key-")
    await end(first, second)


async def test_a_server_that_goes_away_and_comes_back() -> None:
    """The last picture stays, with a word about it; then it goes on."""
    app = make_app(FakeEngine())
    async with desk(app) as seen:
        seen.client.is_away = True
        await seen.look()
        assert "Connection refused; trying again" in seen.text("#notice")
        assert "toy, ready" in seen.text("#head")
        seen.client.is_away = False
        await seen.look()
        assert seen.text("#notice") == ""


async def test_the_chosen_request_is_explained_in_a_panel() -> None:
    """With enter; escape closes it."""
    engine = FakeEngine()
    app = make_app(engine)
    one = await running(app, engine, "Hello")
    async with desk(app) as seen:
        await seen.press("enter")
        panel = seen.top.screen
        assert isinstance(panel, Panel)
        assert "It is a request of class interactive" in panel.text.plain
        one[1].say("more")
        await seen.look()
        assert [row[5] for row in seen.rows()] == ["9"], "what lies below is drawn all the same"
        await seen.press("escape")
        assert not isinstance(seen.top.screen, Panel)
        await seen.press("question_mark")
        assert "quit" in getattr(seen.top.screen, "text", "")
    await end(one)


async def test_actions_are_asked_back_and_then_done() -> None:
    """Only y does it; what the server answers is shown, a refusal, too."""
    engine = FakeEngine()
    app = make_app(engine)
    one = await running(app, engine, "Hello")
    async with desk(app) as seen:
        await seen.press("p")
        question = seen.top.screen
        assert isinstance(question, Question)
        assert question.text.startswith("Pause chatcmpl-")
        await seen.press("n")
        assert engine.controlled == []
        for key in ("p", "r", "d"):
            await seen.press(key, "y")
        assert engine.controlled == [(1, "pause"), (1, "resume"), (1, "downgrade")]
        assert seen.text("#notice").startswith("downgrade: done")
        engine.control_answers[1] = ("running", "it is background work already")
        await seen.press("d", "y")
        assert "it is background work already" in seen.text("#notice")
        await seen.press("c", "y")
        assert engine.aborted == [1]
        assert seen.client.sent[-4].startswith("POST /admin/requests/chatcmpl-"), "an operator may end anybody's"
        assert seen.rows() == []
        await seen.press("p")
        assert seen.text("#notice") == "no request is chosen"
    await end(one)


async def test_one_who_is_no_operator_sees_and_cancels_its_own() -> None:
    """And is told why the rest is not for it."""
    engine = FakeEngine()
    keys = Settings.model_validate({"auth": {"admin_key": "key-of-the-root", "keys": {"a": "key-of-alice", "b": "key-of-bobby"}}})
    app = make_app(engine, keys)
    own, other = await running(app, engine, "Hello", "key-of-alice"), await running(app, engine, "Hi", "key-of-bobby")
    async with desk(app, "key-of-alice") as seen:
        assert [row[5] for row in seen.rows()] == ["5"]
        await seen.press("p", "y")
        assert "This is for operators" in seen.text("#notice")
        await seen.press("c", "y")
        assert seen.client.sent[-5].startswith("POST /v1/requests/chatcmpl-")
        assert engine.aborted == [1]
    await end(own, other)


async def test_the_chosen_request_stays_chosen() -> None:
    """Whatever comes, goes or is sorted around it."""
    engine = FakeEngine()
    app = make_app(engine)
    lives = [await running(app, engine, "x" * n) for n in (1, 5, 9)]
    async with desk(app) as seen:
        await seen.press("s", "s")
        assert seen.top.sort_by == "tokens"
        assert [row[5] for row in seen.rows()] == ["9", "5", "1"]
        await seen.press("up", "up", "down")
        chosen = seen.top.chosen
        assert chosen is not None
        assert chosen.output == 5
        await seen.press("s")
        assert seen.top.sort_by != "tokens"
        assert seen.top.chosen is not None
        assert seen.top.chosen.id == chosen.id
        lives[2][1].finish()
        await lives[2][0].ended()
        await seen.look()
        assert len(seen.rows()) == 2
        assert seen.top.chosen.id == chosen.id
        assert seen.top.query_one("#notice", Label).display
    await end(*lives[:2])


async def test_it_looks_by_itself() -> None:
    """Once a period, until it is closed."""
    client = AppClient(make_app(FakeEngine()))
    top = TopApp(Watch(client), 0.0)
    async with top.run_test():
        async with asyncio.timeout(60):
            asked = [await client.asked.get() for _ in range(9)]
    assert asked.count("GET /status") >= 3
