"""A real text worker with a real vocabulary: what it answers, and that its bounds hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from poise.config.serving import TextSettings
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.tokens import TextModel, Tokens
from poise.gateway.text.workers import TextWorkers
from poise.llama.binding.model import Model
from poise.llama.files.default_model import default_model
from poise.wire import text as wire
from poise.wire.text import LARGE_BYTES
from poise.worker.text.chat_template import ChatTemplate
from poise.worker.text.process import LARGE_NICE
from poise.worker.text.tokeniser import Tokeniser
from tests.worker.text.models import Worker, altered

pytestmark = pytest.mark.slow

HI = [wire.Message("user", "Hi <|im_end|> there"), wire.Message("assistant", "Hello."), wire.Message("user", "so é?")]


async def with_workers(model: Path, ask: Callable[[Tokens], Awaitable[None]], **settings: float) -> None:
    """Ask a model's text workers, as the gateway does."""
    workers = TextWorkers(TextSettings(**settings), str(model))  # type: ignore[arg-type]
    workers.start()
    try:
        await ask(TextModel(await workers.vocabulary(), workers).of("a"))
    finally:
        await workers.stop()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(default_model())
    yield worker
    assert worker.end() == 0


def test_it_answers_as_the_tokeniser_does(worker: Worker) -> None:
    """The bytes of every token, and the ids of conversations and prompts."""
    with Model.load(default_model(), vocab_only=True) as model:
        vocab = model.vocab
        bos, eos = vocab.special_text("bos"), vocab.special_text("eos")
        here = Tokeniser(vocab, ChatTemplate(model.chat_template, bos_text=bos, eos_text=eos))
        assert isinstance(worker.opened, wire.Vocabulary)
        table = TextModel(worker.opened, TextWorkers(TextSettings(), ""))
        for token in range(vocab.n_tokens):
            assert table.token_name(token) == vocab.piece(token, special=True)
            assert table.token_bytes(token) == vocab.piece(token, special=False)
        assert worker.opened.keeps_blanks
        ids = here.chat(HI)[0]
        assert worker.ask(wire.Chat(HI, 0, 1000)) == wire.Ids(len(ids), ids)
        assert worker.ask(wire.Chat(HI, 0, len(ids) - 1)) == wire.Ids(len(ids), [])
        ids = here.prompt_ids("<|im_start|>user")
        assert worker.ask(wire.Prompt("<|im_start|>user", 1000)) == wire.Ids(len(ids), ids)
        assert worker.ask(wire.Prompt("one two", 0)) == wire.Ids(2, [])
        again = Worker(default_model(), known=True)
        assert again.opened == wire.Opened()
        assert again.ask(wire.Chat(HI, 0, len(ids))) == worker.ask(wire.Chat(HI, 0, len(ids)))
        assert again.end() == 0


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    worker = Worker(tmp_path / "model.gguf")
    assert isinstance(worker.opened, wire.Unusable)
    assert str(tmp_path) in worker.opened.problem
    assert "\n" not in worker.opened.problem
    assert worker.end() == 1


def test_a_broken_template_is_said_in_one_line(tmp_path: Path) -> None:
    worker = Worker(altered(tmp_path / "model.gguf", template="{% if %}"))
    assert isinstance(worker.opened, wire.Unusable)
    assert "template is broken in line 1" in worker.opened.problem
    assert worker.end() == 1


@pytest.fixture(scope="module")
def regex_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pre-tokeniser llama.cpp runs through std::regex, which recurses once for each character."""
    return altered(tmp_path_factory.mktemp("model") / "gpt-4o.gguf", pre="gpt-4o")


def test_long_runs_of_letters_are_tokenised(regex_model: Path) -> None:
    """26,000 would end an ordinary stack."""
    worker = Worker(regex_model)
    for n in (4_000, 26_000, 400_000):
        answer = worker.ask(wire.Prompt("a" * n, 0))
        assert isinstance(answer, wire.Ids), f"{n} letters: {answer}"
        assert n / 64 < answer.n <= n
    assert worker.end() == 0


def test_a_large_text_leaves_the_processors_to_streams(regex_model: Path) -> None:
    """The thread that works on it has a low priority; the one that works on small texts keeps its own."""
    worker = Worker(regex_model)
    process = psutil.Process(worker.process.pid)
    seen: set[int] = set()
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.001):
            for thread in process.threads():
                with contextlib.suppress(OSError):
                    seen.add(os.getpriority(os.PRIO_PROCESS, thread.id))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert isinstance(worker.ask(wire.Prompt("a" * (LARGE_BYTES // 2), 0)), wire.Ids)
    assert seen == {0}
    assert isinstance(worker.ask(wire.Prompt("a" * 400_000, 0)), wire.Ids)
    watching.set()
    watcher.join()
    assert seen == {0, LARGE_NICE}
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 0
    assert worker.end() == 0


def test_a_text_that_no_stack_is_deep_enough_for(regex_model: Path) -> None:
    """It ends its worker, twice, and is refused by name; the next one is answered."""

    async def asked(text: Tokens) -> None:
        with pytest.raises(ApiError) as caught:
            await text.length("a" * 400_000)
        assert (caught.value.status, caught.value.code) == (400, "text_rejected")
        assert await text.length("a" * 10_000) > 0

    asyncio.run(with_workers(regex_model, asked, memory_mb=64))


def test_a_template_that_loops_for_ever(tmp_path: Path) -> None:
    """Its worker is killed when its time is over, and raw prompts are answered before and after."""
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}" + "{% endfor %}" * 2

    async def asked(text: Tokens) -> None:
        assert (await text.prompt("one two")).n == 2
        with pytest.raises(ApiError) as caught:
            await text.chat(HI)
        assert (caught.value.status, caught.value.code) == (400, "chat_template_failed")
        assert (await text.prompt("one two")).n == 2

    asyncio.run(with_workers(altered(tmp_path / "model.gguf", template=source), asked, timeout_s=2.0))


@pytest.mark.parametrize("text", ["'a' * 10**10", "('a' * 10**8) * 10**2"])
def test_a_template_that_takes_all_memory(tmp_path: Path, text: str) -> None:
    """It is refused within the worker's bound, which lives on."""
    worker = Worker(altered(tmp_path / "model.gguf", template="{{ " + text + " }}"))
    answer = worker.ask(wire.Chat(HI, 0, 1000))
    assert isinstance(answer, wire.Refused)
    assert (answer.status, answer.code) == (400, "chat_template_failed")
    assert worker.ask(wire.Prompt("one two", 0)) == wire.Ids(2, [])
    assert worker.end() == 0
