"""The store of records: found by whom they belong to, counted exactly, and gone when their time or the budget is over."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config.serving import ResultsSettings
from poise.gateway.records.kept import Records
from poise.gateway.records.moments import End
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import Heading, Logprob
from poise.scheduler.request import RequestClass
from tests.gateway.fakes import at_once, opened

MB = 1 << 20


def record(response_id: str, tenant: str = "a", request_id: str = "") -> Record:
    heading = Heading(response_id, 0, "toy", "fp")
    origin = Origin(request_id or f"req-{response_id}", tenant, RequestClass.INTERACTIVE, "messages", time.perf_counter())
    return opened(Record(origin, heading, 1))


def finished(store: Records, response_id: str, tenant: str = "a", n_chars: int = 10) -> Record:
    made = record(response_id, tenant)
    store.add(made)
    made.append(0, "x" * n_chars, (), 0.0)
    made.end()
    store.finish(made, keep=True)
    return made


def store(**settings: float) -> Records:
    return Records(ResultsSettings.model_validate(settings))


def test_a_record_is_its_tenants() -> None:
    """By its id or the tenant's own; to another tenant it is not there. An operator finds it by its id."""
    kept = store()
    mine = record("r1", request_id="mine")
    kept.add(mine)
    assert kept.find("r1", "a") is kept.find("mine", "a") is kept.find("r1", None) is mine
    assert kept.find("r1", "b") is kept.find("mine", "b") is kept.find("mine", None) is None
    mine.end()
    kept.finish(mine, keep=True)
    assert kept.find("r1", "a") is kept.find("mine", "a") is mine
    assert kept.find("r1", "b") is None


def test_of_equal_request_ids_the_newest_counts() -> None:
    """A client may use one again; of other tenants' nothing is seen."""
    kept = store()
    first, second, other = record("r1", request_id="x"), record("r2", request_id="x"), record("r3", "b", "x")
    for made in (first, second, other):
        kept.add(made)
    assert kept.find("x", "a") is second
    assert kept.find_live("x") is None
    first.end()
    second.end()
    kept.finish(second, keep=False)
    kept.finish(first, keep=True)
    assert kept.find("r2", "a") is kept.find("x", "a") is None
    assert kept.find_live("x") is other


def test_the_newest_come_first() -> None:
    """Live ones, then those that have ended."""
    kept = store()
    for name in ("r1", "r2"):
        finished(kept, name)
    for name in ("r3", "r4"):
        kept.add(record(name))
    kept.add(record("r5", "b"))
    assert [made.response_id for made in kept.of_tenant("a")] == ["r4", "r3", "r2", "r1"]


def test_what_is_over_is_gone() -> None:
    """After `retention_s`, and at once where that is 0."""
    kept = store(retention_s=100)
    old, new = finished(kept, "old"), finished(kept, "new")
    old.ended_s = time.perf_counter() - 101
    assert kept.find("old", "a") is None
    assert kept.find("new", "a") is new
    assert kept.count() == (0, 1)
    none = store(retention_s=0)
    finished(none, "r1")
    assert (none.count(), none.n_bytes) == ((0, 0), 0)


def test_a_tenant_has_its_share() -> None:
    """Its oldest go, nobody else's."""
    kept = store(budget_mb=4, tenant_share=0.5)
    other = finished(kept, "other", "b", MB)
    mine = [finished(kept, f"r{i}", "a", MB * 2 // 3) for i in range(4)]
    assert [kept.find(made.response_id, "a") is made for made in mine] == [False, False, True, True]
    assert kept.find("other", "b") is other
    assert finished(kept, "huge", "a", 3 * MB).is_ended
    assert kept.find("huge", "a") is None


def test_live_ones_are_counted_and_stay() -> None:
    """What they take is taken from those that have ended."""
    kept = store(budget_mb=2, tenant_share=1.0)
    finished(kept, "done", "a", MB)
    live = record("live")
    kept.add(live)
    assert kept.count() == (1, 1)
    live.append(0, "x" * 3 * MB, (), 0.0)
    kept.purge()
    assert kept.count() == (1, 0)
    assert kept.n_bytes == live.n_bytes > 3 * MB


def test_erasing_a_tenant_says_what_was_erased() -> None:
    """What is still running is not."""
    kept = store()
    taken = sum(finished(kept, f"r{i}").n_bytes for i in range(3))
    kept.add(live := record("live"))
    other = finished(kept, "other", "b")
    erased = at_once(kept.erase("a"))
    assert erased == {"results": 3, "result_tokens": 3, "result_bytes": taken}
    assert live.erased
    assert not other.erased
    assert kept.n_bytes - record("live").n_bytes == other.n_bytes
    assert at_once(kept.erase("a"))["results"] == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 400_000), st.sampled_from(["finish", "refuse", "live", "drop", "erase"])),
        max_size=40,
    )
)
def test_the_books_are_exact(steps: list[tuple[str, int, str]]) -> None:
    """After anything, the bytes are those of what is there, and within the budget."""
    kept = store(budget_mb=1, tenant_share=0.5)
    made: list[Record] = []
    for i, (tenant, n_chars, what) in enumerate(steps):
        if what == "drop" and made:
            kept.drop(made[n_chars % len(made)])
        elif what == "erase":
            at_once(kept.erase(tenant))
        else:
            new = record(f"r{i}", tenant)
            kept.add(new)
            new.append(0, "x" * n_chars, (), 0.0)
            if what != "live":
                new.end()
                kept.finish(new, keep=what == "finish")
            made.append(new)
        kept.purge()
        there = [r for r in made if kept.find(r.response_id, r.origin.tenant) is r]
        assert kept.n_bytes == sum(r.n_bytes for r in there)
        assert kept.count() == (sum(not r.is_ended for r in there), sum(r.is_ended for r in there))
        assert kept.n_bytes <= MB or not any(r.is_ended for r in there)


def test_a_record_counts_all_that_it_holds() -> None:
    """Texts, log probabilities with their alternatives, ends and moments."""
    made = record("r1")
    made.wants_logprobs = True
    entry = Logprob(b"piece", -1.0, ((b"other", -2.0),) * 20, 0, 1)
    sizes = [made.n_bytes]
    made.append(0, "text", (), 0.0)
    sizes.append(made.n_bytes)
    made.append(0, "text", [entry], 0.0)
    sizes.append(made.n_bytes)
    made.note("pause", 0)
    sizes.append(made.n_bytes)
    made.end_choice(End(2, 0, "stop", "more", [entry]), "stop")
    sizes.append(made.n_bytes)
    plain, told, noted, ended = (after - before for before, after in pairwise(sizes))
    assert 0 < plain < 200
    assert told > plain + 20 * 100
    assert 100 < noted < 1000
    assert ended > told


@pytest.mark.parametrize("n", [3000])
def test_a_timeline_is_bounded(n: int) -> None:
    """A request that is held and resumed for ever does not grow for ever; its end is told."""
    made = record("r1")
    for _ in range(n):
        made.note("stall", 0)
    made.end_choice(End(0, 0, "stop", "", ()), "stop")
    assert len(made.timeline) < 1100
    assert made.timeline[-1].what == "finished"
