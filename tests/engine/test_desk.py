"""Reading the journal while the engine runs: in pages, from a copy, off the loop, within a budget."""

from __future__ import annotations

import json
import threading

import pytest

from poise.config import Settings, to_policy
from poise.engine import desk, journal
from poise.engine.journal import Journal, JournalError, read_journal
from poise.scheduler.request import Request, RequestClass
from poise.wire import messages as wire
from poise.wire import to_engine
from poise_lab.sim.replay import replay
from tests.engine.harness import Bench


def request(request_id: int, n_blocks: int, tenant: str = "t") -> Request:
    blocks = tuple(range(n_blocks))
    return Request(request_id, tenant, RequestClass.INTERACTIVE, n_prompt=8 * n_blocks, max_output=1, blocks=blocks)


def test_pages_are_small_and_make_up_the_journal() -> None:
    """Each within its bounds but for one line; together what was recorded until the reading began."""
    bench = Bench()
    for i in range(1, 60):
        bench.submit(i, [i] * 40, 8)
    bench.run()
    whole = list(bench.engine.journal.lines())
    page, lines, n_pages = bench.page(to_engine.ReadJournal(1, begins=True)), list[str](), 0
    while not page.is_last:
        assert 0 < len(page.lines) <= desk.PAGE_ENTRIES
        assert sum(map(len, page.lines[:-1])) < desk.PAGE_BYTES
        lines += page.lines
        bench.submit(1000 + n_pages, [1] * 20, 1)
        page, n_pages = bench.page(to_engine.ReadJournal(1)), n_pages + 1
    assert n_pages > 2
    assert lines == whole, "what comes later is not in the copy"


def test_nothing_is_formatted_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a page nor for the copy: a step goes on while a page is being made."""
    bench = Bench()
    bench.submit(1, [1] * 40, 8)
    bench.run()
    may_format, threads = threading.Event(), set[str]()

    def plain(value: object) -> object:
        threads.add(threading.current_thread().name)
        assert may_format.wait(10)
        return str(value)

    monkeypatch.setattr(journal, "plain", plain)
    bench.mail.incoming.append(to_engine.ReadJournal(1, begins=True))
    bench.run()
    bench.submit(2, [2] * 40, 8)
    bench.run()
    assert len(bench.tokens(2)) == 8, "it was answered while the page was held up"
    may_format.set()
    assert bench.mail.pages.get(timeout=10).lines
    assert threads == {"journal"}


def test_who_begins_takes_the_place_of_who_was_reading() -> None:
    """The engine holds one copy; the former reader is told, and one of an engine before this one is, too."""
    bench = Bench()
    bench.submit(1, [1] * 40, 8)
    bench.run()
    assert bench.page(to_engine.ReadJournal(7)).is_lost
    bench.page(to_engine.ReadJournal(1, begins=True))
    second = bench.page(to_engine.ReadJournal(2, begins=True))
    assert second.lines
    assert bench.page(to_engine.ReadJournal(1)) == wire.JournalPage(1, [], is_lost=True)
    bench.send(to_engine.ReadJournal(1, ends=True))
    bench.run()
    assert not bench.page(to_engine.ReadJournal(2)).is_lost, "the end of one reading ends no other"
    bench.send(to_engine.ReadJournal(2, ends=True))
    bench.run()
    assert bench.engine._desk._copy is None, "nothing of it is held any longer"
    assert bench.page(to_engine.ReadJournal(2)).is_lost


def test_an_erased_tenant_is_not_in_pages_that_are_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is erased as the ring is."""
    monkeypatch.setattr(desk, "PAGE_ENTRIES", 2)
    bench = Bench()
    for i in range(1, 9):
        bench.submit(i, [i] * 40, 8, tenant="erased-one")
    bench.run()
    bench.page(to_engine.ReadJournal(1, begins=True))
    bench.send(to_engine.Erase(5, "erased-one"))
    bench.run()
    page, told = bench.page(to_engine.ReadJournal(1)), ""
    while not page.is_last:
        told += "".join(page.lines)
        page = bench.page(to_engine.ReadJournal(1))
    assert "(erased)" in told
    assert "erased-one" not in told


def test_keys_of_blocks_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts, refused ones too, cannot fill the ring; what leaves it makes room, and the header counts what was cut."""
    monkeypatch.setattr(journal, "BLOCKS_MAX", 1000)
    ring = Journal(entries_max=4)
    for i in range(3):
        ring.record(i, "add", request(i, 400), None)
    assert [len(e[2][0].blocks) for e in ring._entries] == [400, 400, journal.BLOCKS_CUT]  # type: ignore[attr-defined]
    ring.record(3, "add", request(3, journal.BLOCKS_CUT), None)
    for i in range(4, 6):
        ring.record(i, "abort", i)
    assert ring._n_blocks == 2 * journal.BLOCKS_CUT
    ring.record(6, "add", request(6, 900), None)
    assert len(ring._entries[-1][2][0].blocks) == 900  # type: ignore[attr-defined]
    assert ring.erase("t") == 2
    assert ring._n_blocks == 0
    assert json.loads(next(ring.lines()))["cut"] == 1
    assert json.loads(next(ring.copy().lines())) == json.loads(next(ring.lines()))


def test_the_ring_is_bounded_in_bytes_whatever_is_asked() -> None:
    """A full ring of the longest prompts: the keys are the budget and the few of each, and nothing else grows with a prompt."""
    ring = Journal()
    for i in range(journal.ENTRIES_MAX):
        ring.record(i, "add", request(i, 2048), None)
    assert ring._n_blocks <= journal.BLOCKS_MAX + journal.ENTRIES_MAX * journal.BLOCKS_CUT


def test_a_journal_that_was_cut_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; one within the budget is, and is the same."""
    bench = Bench()
    bench.engine.journal.record_policy(bench.scheduler._policy)
    for i in range(1, 4):
        bench.submit(i, [7] * 400, 8)
    bench.run()
    assert replay(bench.journal()).difference == ""
    monkeypatch.setattr(journal, "BLOCKS_MAX", 40)
    bench = Bench()
    bench.engine.journal.record_policy(to_policy(Settings()))
    bench.submit(1, [7] * 400, 8)
    bench.run()
    assert read_journal(bench.journal()).n_cut == 1
    with pytest.raises(JournalError, match="no room"):
        replay(bench.journal())


def test_the_thread_survives_what_it_cannot_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is told that there is no more, and the next one reads."""
    bench = Bench()
    bench.submit(1, [1] * 40, 8)
    bench.run()
    with monkeypatch.context() as broken:
        broken.setattr(journal, "plain", lambda _: 1 // 0)
        assert bench.page(to_engine.ReadJournal(1, begins=True)).is_lost
    page = bench.page(to_engine.ReadJournal(2, begins=True))
    assert (page.is_lost, bool(page.lines)) == (False, True)


def test_without_a_thread_there_is_a_reader_less_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that was asked goes on."""
    bench = Bench()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", fail)
        assert bench.page(to_engine.ReadJournal(1, begins=True)).is_lost
    assert not bench.page(to_engine.ReadJournal(2, begins=True)).is_lost
