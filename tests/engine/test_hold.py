"""Readers that are behind, limits that move and tenants that are erased, as the wire tells of them."""

from __future__ import annotations

from random import Random

import pytest

from poise.engine.journal import JournalError, read_journal
from poise.scheduler.planning.plan import ReleaseSlot, ScrubPool
from poise.scheduler.request import PreemptionKind, RequestClass
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from poise_lab.sim.replay import replay
from tests.engine.harness import Bench
from tests.engine.reference import answer
from tests.engine.test_preemption import Crowd, bench

PROMPT = [3 + k for k in range(30)]


def changes(b: Bench, request_id: int) -> list[str]:
    return [c.what for c in b.changes(request_id)]


def test_a_reader_that_is_behind_stops_its_request_and_only_that() -> None:
    """Held, swapped out, let go: the wire tells each once, and no token is missing or sent twice."""
    b = Bench()
    b.submit(1, PROMPT, 40)
    b.submit(2, [*PROMPT, 2], 100)
    b.step(8)
    given = len(b.tokens(1))
    b.send(to_engine.Hold(1, "pause"), to_engine.Hold(99, "pause"))
    b.step(5)
    assert len(b.tokens(1)) == given
    b.send(to_engine.Hold(1, "swap"), to_engine.Hold(1, "swap"))
    b.step(5)
    assert changes(b, 1) == ["stall", "swap"]
    b.send(to_engine.Hold(1, "run"))
    b.run()
    assert changes(b, 1) == ["stall", "swap", "resume"]
    assert b.tokens(1) == answer(PROMPT, 40)
    assert b.tokens(2) == answer([*PROMPT, 2], 100)
    assert b.finish(1).n_preempted == 0


def test_an_engine_with_only_held_requests_rests() -> None:
    """It waits for a message, and the levels it sends say so."""
    b = Bench()
    b.submit(1, PROMPT, 40)
    b.step(4)
    b.send(to_engine.Hold(1, "pause"))
    b.run()
    assert b.mail.waits[-1] is None
    status = [m for m in b.mail.sent if isinstance(m, wire_status.Status)][-1]
    stands = status.classes[RequestClass.INTERACTIVE]
    assert (stands.queued, stands.running, stands.paused, stands.swapped) == (0, 0, 1, 0)
    assert status.totals.preemptions[PreemptionKind.STALL] == 1


def test_an_operator_and_a_reader_at_once() -> None:
    """It goes on when both have let go; the operator is told the state all the while."""
    b = Bench()
    b.submit(1, PROMPT, 40)
    b.step(4)
    b.send(to_engine.Hold(1, "pause"))
    b.step()
    assert b.control(1, "pause") == wire.Controlled(1, "pause", "paused")
    assert b.control(1, "resume") == wire.Controlled(1, "resume", "paused"), "its reader is still behind"
    b.send(to_engine.Hold(1, "run"))
    b.run()
    assert changes(b, 1) == ["stall", "pause", "resume"]
    assert b.tokens(1) == answer(PROMPT, 40)


class StuckCrowd(Crowd):
    """The crowd of the preemption tests, with readers that stall besides."""

    def _meddle(self, rng: Random) -> None:
        super()._meddle(rng)
        request_id = rng.choice(list(self.asked))
        self.bench.send(to_engine.Hold(request_id, rng.choice(["run", "pause", "swap"])))

    def run(self, n_requests: int = 40) -> None:
        super_run, send = self.bench.run, self.bench.send

        def release_and_run(steps_max: int = 0) -> None:
            send(*(to_engine.Hold(request_id, "run") for request_id in sorted(self.asked)))
            super_run(steps_max)

        self.bench.run = release_and_run  # type: ignore[method-assign]
        super().run(n_requests)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("store_cells", [1 << 20, 900, 0])
def test_output_is_the_same_whoever_stops_reading(seed: int, store_cells: int) -> None:
    """Holds of every level at random among operators, swaps and drops: every answer is what it would have been alone; and a
    journal of it replays."""
    crowd = StuckCrowd(bench(store_cells=store_cells), seed)
    crowd.run()
    crowd.check()
    lines = list(crowd.bench.engine.journal.lines())
    assert replay(lines).difference == ""
    assert "hold" in {entry.kind for entry in read_journal(lines).entries}


def test_shares_of_limits_are_journalled_and_replayed() -> None:
    """A lower share refuses what a whole one would have taken; the replay refuses the same."""
    b = Bench(slots=3)
    b.send(to_engine.Adjust(0.05, 0.5))
    for i in range(1, 12):
        b.submit(i, [*PROMPT, i], 10)
    b.run()
    assert [m.reason for m in b.mail.sent if isinstance(m, wire.Refused)].count("queue_share") > 0
    lines = list(b.engine.journal.lines())
    assert replay(lines).difference == ""
    assert replay([line for line in lines if '"adjust"' not in line]).difference


def test_erasing_a_tenant_leaves_nothing_of_it() -> None:
    """Its prefixes, its cells, its name and its keys; the other tenant's stay, and the journal says that it cannot replay."""
    b = Bench()
    b.submit(1, PROMPT, 40, tenant="alice")
    b.submit(2, PROMPT, 40, tenant="bob")
    b.run()
    b.send(to_engine.Erase(7, "alice"))
    b.step()
    (erased,) = [m for m in b.mail.sent if isinstance(m, wire.Erased)]
    assert (erased.erase_id, erased.entries, erased.cells) == (7, 1, 69)
    assert erased.n_bytes == 69 * 64
    assert erased.journal_entries == 1
    plans = [values[0] for _, kind, values in b.engine.journal._entries if kind == "plan"]
    operations = plans[-1].operations  # type: ignore[attr-defined]
    assert [type(o) for o in operations] == [ReleaseSlot, ScrubPool, ScrubPool]
    lines = list(b.engine.journal.lines())
    assert "alice" not in "".join(lines)
    assert "bob" in "".join(lines)
    with pytest.raises(JournalError, match="a tenant was erased: 1 entries"):
        replay(lines)
    b.submit(3, PROMPT, 5, tenant="alice")
    b.submit(4, PROMPT, 5, tenant="bob")
    b.run()
    assert b.start(3).n_cached == 0
    assert b.start(4).n_cached > 0


def test_erasing_takes_the_keys_of_blocks_with_it() -> None:
    """Of the prompt, and of the output that completed more."""
    b = Bench()
    b.submit(1, PROMPT, 40, tenant="alice")
    b.submit(2, PROMPT, 40, tenant="bob")
    b.run()

    def keys() -> tuple[int, int]:
        """Blocks in requests, blocks in results."""
        entries = read_journal(b.engine.journal.lines()).entries
        asked = sum(len(e.values[0]["blocks"]) for e in entries if e.kind == "add")
        return asked, sum(len(e.values[0]["blocks"]) for e in entries if e.kind == "result")

    whole = keys()
    assert min(whole) > 0
    b.send(to_engine.Erase(1, "alice"))
    b.step()
    assert keys() == (whole[0] // 2, whole[1] // 2)


@pytest.mark.parametrize("reason", ["length", "aborted", "swapped"])
def test_what_is_live_of_an_erased_tenant_leaves_nothing(reason: str) -> None:
    """It goes on to its end, token for token; then its pool's cells are overwritten, and no prefix is kept."""
    b = Bench()
    b.submit(1, PROMPT, 40, tenant="alice")
    b.submit(2, PROMPT, 60, tenant="bob")
    b.step(5)
    b.send(to_engine.Erase(7, "alice"))
    b.step()
    (erased,) = [m for m in b.mail.sent if isinstance(m, wire.Erased)]
    assert (erased.entries, erased.journal_entries) == (0, 1)
    if reason != "length":
        b.send(to_engine.Hold(1, "swap")) if reason == "swapped" else None
        b.step()
        b.send(to_engine.Abort(1))
    b.run()
    if reason == "length":
        assert b.tokens(1) == answer(PROMPT, 40)
    assert b.finish(1).reason == ("length" if reason == "length" else "aborted")
    plans = [values[0].operations for _, kind, values in b.engine.journal._entries if kind == "plan"]  # type: ignore[attr-defined]
    assert [o.pool for plan in plans for o in plan if isinstance(o, ScrubPool)] == ["short", "long", "short"]
    b.submit(3, PROMPT, 5, tenant="alice")
    b.submit(4, PROMPT, 5, tenant="bob")
    b.run()
    assert b.start(3).n_cached == 0
    assert b.start(4).n_cached > 0


def test_cells_are_overwritten_once_for_all_that_were_live() -> None:
    """That copies what everybody else holds: not for each of hundreds of requests, and for none that came later."""
    b = Bench()
    for i in (1, 2, 3):
        b.submit(i, [*PROMPT, i], 10 * i, tenant="alice")
    b.submit(4, PROMPT, 80, tenant="bob")
    b.step(5)
    b.send(to_engine.Erase(7, "alice"))
    b.step()
    b.submit(5, PROMPT, 60, tenant="alice")
    b.run()
    plans = [values[0].operations for _, kind, values in b.engine.journal._entries if kind == "plan"]  # type: ignore[attr-defined]
    assert [o.pool for plan in plans for o in plan if isinstance(o, ScrubPool)] == ["short", "long", "short"]


def test_an_erased_request_from_another_engine_leaves_nothing() -> None:
    """And no name in the journal of the engine that takes it over."""
    b = Bench()
    b.send(to_engine.Submit(1, "alice", "interactive", PROMPT, 20, to_engine.SamplingParams(temperature=0.0), erased=True))
    b.run()
    assert "alice" not in "".join(b.engine.journal.lines())
    b.submit(2, PROMPT, 5, tenant="alice")
    b.run()
    assert b.start(2).n_cached == 0


def test_erasing_who_was_never_here_is_answered_too() -> None:
    """Nothing goes, and the journal still replays."""
    b = Bench()
    b.submit(1, PROMPT, 10)
    b.run()
    b.send(to_engine.Erase(3, "nobody"))
    b.run()
    assert [m for m in b.mail.sent if isinstance(m, wire.Erased)] == [wire.Erased(3, 0, 0, 0, 0)]
    assert replay(b.engine.journal.lines()).difference == ""


@pytest.mark.parametrize("stop", [to_engine.Hold(1, "swap"), to_engine.Control(1, "pause")])
def test_what_is_over_before_a_start_is_not_told_after_it(stop: to_engine.Hold | to_engine.Control) -> None:
    """Held and let go while it was queued, and started in the same step: a reader of the message finds it running."""
    b = Bench()
    b.submit(1, PROMPT, 10)
    b.send(stop, to_engine.Hold(1, "run"), to_engine.Control(1, "resume"))
    b.run()
    assert b.start(1).pool == "short"
    assert changes(b, 1) == []
    assert b.tokens(1) == answer(PROMPT, 10)
