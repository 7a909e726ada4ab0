"""Text workers that die, hang, or are not there: what becomes of the text, and of everybody else's.

The workers are processes that do what their texts say (`fake_worker`).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from poise.config.serving import TextSettings
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.workers import TextUnusable, TextWorkers, _Job
from poise.wire import text as wire

COMMAND = (sys.executable, "-m", "tests.gateway.text.fake_worker")
WAIT_S = 60.0
"""Only a failing test waits that long."""


@asynccontextmanager
async def workers(tmp_path: Path, model: str = "", fingerprint: str = "", **settings: Any) -> AsyncIterator[TextWorkers]:
    if not model:
        (tmp_path / "model").write_text("3")
    given = TextSettings(**{"workers": 1, **settings})
    pool = TextWorkers(given, model or str(tmp_path / "model"), COMMAND, fingerprint=fingerprint)
    pool.start()
    try:
        async with asyncio.timeout(WAIT_S):
            yield pool
    finally:
        await pool.stop()


async def length(pool: TextWorkers, text: str, account: str = "a", n_bytes: int = 0) -> int:
    answer = await pool.run(wire.Prompt(text, 0), account, n_bytes or len(text))
    assert isinstance(answer, wire.Ids)
    return answer.n


async def refusal(pool: TextWorkers, job: wire.Job) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await pool.run(job, "a", 4)
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    """Until another process has got so far."""
    while not condition():  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.002)


def is_busy(pool: TextWorkers) -> bool:
    return bool(pool.status().workers[0].state == "busy")


def pids(pool: TextWorkers) -> list[int]:
    return [worker.pid or 0 for worker in pool.status().workers]


async def test_texts_are_answered(tmp_path: Path) -> None:
    """By the one worker that there is, as many as come; the vocabulary is known before."""
    async with workers(tmp_path) as pool:
        assert (await pool.vocabulary()).n_tokens == 3
        assert await asyncio.gather(*(length(pool, "x" * n) for n in range(1, 20))) == list(range(1, 20))
        (worker,) = pool.status().workers
        assert (worker.state, worker.restarts) == ("ready", 0)
        assert pool.status().queued_bytes == 0


async def test_nothing_of_a_text_waits_for_the_collector(tmp_path: Path) -> None:
    """Answered, refused over its workers' deaths or for want of room, or left by its client: jobs are gone at once."""
    async with workers(tmp_path, queue_mb=1) as pool:
        assert await length(pool, "well") == 4
        gc.collect()
        gc.disable()
        try:
            assert await length(pool, "well") == 4
            assert (await refusal(pool, wire.Prompt("die", 0))).code == "text_rejected"
            with pytest.raises(ApiError, match="Too much of your text"):
                await length(pool, "x", n_bytes=2 << 20)
            leaving = asyncio.ensure_future(length(pool, "hang"))
            await until(lambda: is_busy(pool))
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            del leaving
            assert await length(pool, "well") == 4
            assert [job for job in gc.get_objects() if type(job) is _Job] == []
        finally:
            gc.enable()


async def test_a_text_that_ends_two_workers_is_refused(tmp_path: Path) -> None:
    """By name, and the next text finds another worker."""
    async with workers(tmp_path) as pool:
        error = await refusal(pool, wire.Prompt("die", 0))
        assert (error.status, error.code) == (400, "text_rejected")
        assert await length(pool, "well") == 4
        assert [how for _, how in pool.deaths] == ["crash", "crash"]
        assert pool.status().workers[0].restarts == 2


@pytest.mark.parametrize("fingerprint", ["", "of this file"])
async def test_a_vocabulary_is_read_once(tmp_path: Path, fingerprint: str) -> None:
    """By a worker that is started again only where the file might be another one; making its table is half of a start."""
    async with workers(tmp_path, fingerprint=fingerprint) as pool:
        first = await pool.vocabulary()
        (tmp_path / "model").unlink()  # whoever reads the vocabulary now, ends
        (tmp_path / "model").write_text("" if fingerprint else "3")
        assert (await refusal(pool, wire.Prompt("die", 0))).code == "text_rejected"
        assert await length(pool, "well") == 4
        assert await pool.vocabulary() is first


async def test_a_text_whose_worker_died_is_tried_once_more(tmp_path: Path) -> None:
    """It may have been the host's doing; whoever asked notices nothing."""
    async with workers(tmp_path) as pool:
        text = f"die unless {tmp_path / 'died'}"
        assert await length(pool, text) == len(text)
        assert len(pool.deaths) == 1


async def test_the_time_of_a_text_ends_with_its_worker(tmp_path: Path) -> None:
    """Nobody else is killed when it is over."""
    async with workers(tmp_path, timeout_s=1.0) as pool:
        loop = asyncio.get_running_loop()
        await pool.vocabulary()
        await length(pool, f"die unless {tmp_path / 'died'}")
        until_s = loop.time() + 1.5
        while loop.time() < until_s:
            await length(pool, "well")
        assert [how for _, how in pool.deaths] == ["crash"]


async def test_a_worker_that_is_killed_with_a_text(tmp_path: Path) -> None:
    """`kill -9` in the middle: the text is done by the next one, and so are those behind it."""
    async with workers(tmp_path) as pool:
        await pool.vocabulary()
        text = f"wait {tmp_path / 'go'}"
        first = asyncio.create_task(length(pool, text))
        behind = asyncio.create_task(length(pool, "behind", "b"))
        await until(lambda: is_busy(pool))
        os.kill(pids(pool)[0], signal.SIGKILL)
        (tmp_path / "go").touch()
        assert (await first, await behind) == (len(text), 6)


@pytest.mark.parametrize(
    ("job", "status", "code"),
    [
        (wire.Prompt("hang", 0), 400, "text_rejected"),
        (wire.Chat([wire.Message("user", "hang")], 0, 1), 400, "text_rejected"),
        (wire.Chat([wire.Message("user", "loop")], 0, 1), 400, "chat_template_failed"),
    ],
    ids=["text", "chat", "template"],
)
async def test_what_takes_too_long_is_ended(tmp_path: Path, job: wire.Job, status: int, code: str) -> None:
    """It is known whether the chat template was done, and the next text is answered."""
    async with workers(tmp_path, timeout_s=0.2) as pool:
        error = await refusal(pool, job)
        assert (error.status, error.code) == (status, code)
        assert await length(pool, "well") == 4
        assert [how for _, how in pool.deaths] == ["timeout"]


async def test_time_is_what_a_text_computes(tmp_path: Path) -> None:
    """One that waits for the processors has not had its time when as much has gone by; for ever it waits neither."""
    async with workers(tmp_path, timeout_s=0.1) as pool:
        await pool.vocabulary()
        loop = asyncio.get_running_loop()
        asked = asyncio.create_task(length(pool, f"wait {tmp_path / 'go'}"))
        await until(lambda: is_busy(pool))
        began_s = loop.time()
        await until(lambda: loop.time() - began_s > 0.3)  # its time three times over
        (tmp_path / "go").touch()
        assert await asked > 0
        assert not pool.deaths
        error = await refusal(pool, wire.Prompt("stuck", 0))
        assert (error.status, error.code) == (400, "text_rejected")
        assert [how for _, how in pool.deaths] == ["timeout"]


async def test_what_a_client_wanted_that_has_left_is_not_worked_out(tmp_path: Path) -> None:
    """What waits is dropped; what runs is ended soon, because somebody waits. A text of another caller is answered."""
    async with workers(tmp_path, timeout_s=30.0) as pool:
        await pool.vocabulary()
        gone = [asyncio.create_task(length(pool, "hang", "gone")) for _ in range(6)]
        await until(lambda: is_busy(pool))
        other = asyncio.create_task(length(pool, "other", "b"))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        assert await other == 5
        assert pool.status().queued_bytes == 0
        assert not pool.deaths  # nobody is to be alarmed


async def test_six_large_texts_of_one_account_delay_another_s_by_one(tmp_path: Path) -> None:
    """The order in which they are done: one that was begun, then the other account's."""
    async with workers(tmp_path) as pool:
        await pool.vocabulary()
        order: list[str] = []

        async def note(name: str, text: str) -> None:
            await length(pool, text, name, n_bytes=1 << 20)
            order.append(name)

        many = [asyncio.create_task(note("many", f"wait {tmp_path / 'go'}")) for _ in range(6)]
        await until(lambda: is_busy(pool))
        one = asyncio.create_task(note("one", "short"))
        await asyncio.sleep(0)
        (tmp_path / "go").touch()
        await asyncio.gather(one, *many)
        assert order == ["many", "one", *["many"] * 5]


async def test_of_two_workers_one_is_kept_for_small_texts(tmp_path: Path) -> None:
    """Two large ones at once would leave nobody."""
    async with workers(tmp_path, workers=2) as pool:
        await until(lambda: [worker.state for worker in pool.status().workers] == ["ready", "ready"])
        large = [asyncio.create_task(length(pool, f"wait {tmp_path / 'go'}", "a", 1 << 20)) for _ in range(2)]
        assert await length(pool, "small", "a") == 5
        (tmp_path / "go").touch()
        await asyncio.gather(*large)


async def test_an_account_that_fills_the_queue_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async with workers(tmp_path, queue_mb=1) as pool:
        await pool.vocabulary()
        waiting = [asyncio.create_task(length(pool, f"wait {tmp_path / 'go'}", "a", 400_000))]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await length(pool, "more", "a", 400_000)
        assert (caught.value.status, caught.value.code) == (429, "text_queue_full")
        assert "Retry-After" in caught.value.headers
        waiting.append(asyncio.create_task(length(pool, "other", "b", 200_000)))
        await asyncio.sleep(0)
        (tmp_path / "go").touch()
        await asyncio.gather(*waiting)


async def test_while_no_worker_is_up_texts_wait_for_a_while(tmp_path: Path) -> None:
    """Then they are told to come back. One that is silent never becomes ready."""
    async with workers(tmp_path, model="silent", wait_s=0.05) as pool:
        error = await refusal(pool, wire.Prompt("x", 0))
        assert (error.status, error.code) == (503, "text_unavailable")
        assert "Retry-After" in error.headers
        assert pool.status().queued == 0


async def test_a_model_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    async with workers(tmp_path, model="unusable") as pool:
        with pytest.raises(TextUnusable, match=r"^model\.gguf: is not a model$"):
            await pool.vocabulary()


async def test_a_model_that_ends_every_worker_is_given_up_at_the_start(tmp_path: Path) -> None:
    """Not tried for ever: the person at the terminal waits."""
    async with workers(tmp_path, model="die") as pool:
        with pytest.raises(TextUnusable, match="SIGSEGV"):
            await pool.vocabulary()


async def test_a_worker_with_another_vocabulary_is_not_used(tmp_path: Path) -> None:
    """The file was replaced under the running server: its ids would mean something else. When it is back, so are the workers."""
    async with workers(tmp_path) as pool:
        await pool.vocabulary()
        (tmp_path / "model").write_text("4")
        os.kill(pids(pool)[0], signal.SIGKILL)
        waiting = asyncio.create_task(length(pool, "text"))
        await until(lambda: pool.status().workers[0].restarts >= 2)
        assert not waiting.done()
        (tmp_path / "model").write_text("3")
        assert await waiting == 4


async def test_stopping_ends_workers_and_what_waits(tmp_path: Path) -> None:
    """With an error that says so; no process is left."""
    async with workers(tmp_path) as pool:
        await pool.vocabulary()
        waiting = [asyncio.create_task(length(pool, "hang", name)) for name in "abc"]
        await until(lambda: is_busy(pool))
        (pid,) = pids(pool)
        await pool.stop()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert {end.code for end in ends if isinstance(end, ApiError)} == {"server_stopping"}
        assert len(ends) == 3
        assert not psutil.pid_exists(pid)
        with pytest.raises(ApiError):
            await length(pool, "late")
