"""An operator's word, queue timeouts and what the wire says of them."""

from __future__ import annotations

import pytest

from poise.scheduler.request import PreemptionKind, RequestClass
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from tests.engine.harness import Bench
from tests.engine.reference import answer

PROMPT = [3 + k for k in range(30)]
MS = 1_000_000


def last_status(b: Bench) -> wire_status.Status:
    return [m for m in b.mail.sent if isinstance(m, wire_status.Status)][-1]


def changes(b: Bench, request_id: int) -> list[str]:
    return [c.what for c in b.changes(request_id)]


def test_a_running_request_is_paused_and_resumed() -> None:
    """The answer tells the new state; no token comes meanwhile; afterwards they go on where they stopped."""
    b = Bench()
    b.submit(1, PROMPT, 40)
    b.step(6)
    given = len(b.tokens(1))
    assert b.control(1, "pause") == wire.Controlled(1, "pause", "paused")
    b.run()
    assert len(b.tokens(1)) == given
    stands = last_status(b).classes[RequestClass.INTERACTIVE]
    assert (stands.queued, stands.running, stands.paused, stands.swapped) == (0, 0, 1, 0)
    assert b.control(1, "resume") == wire.Controlled(1, "resume", "running")
    b.run()
    assert b.tokens(1) == answer(PROMPT, 40)
    assert changes(b, 1) == ["pause", "resume"]
    assert b.finish(1).n_preempted == 0, "standing still in its slot, it has lost nothing"


def test_a_queued_request_can_be_paused() -> None:
    """Its turn passes it by; resumed, it is queued again and starts."""
    b = Bench(slots=3)
    for i in range(1, 6):
        b.submit(i, PROMPT, 30)
    b.step()
    waiting = next(i for i in range(1, 6) if not any(s.request_id == i for m in b.steps for s in m.starts))
    assert b.control(waiting, "pause").state == "paused"
    b.run()
    assert b.tokens(waiting) == []
    assert b.control(waiting, "resume").state in ("waiting", "running")
    b.run()
    assert b.tokens(waiting) == answer(PROMPT, 30)


def test_a_request_paused_in_a_slot_that_is_needed_comes_back_exactly() -> None:
    """Pause, swap, resume: the wire tells each."""
    b = Bench(slots=3)
    b.submit(1, PROMPT, 40, tenant="first")
    b.step(8)
    b.control(1, "pause")
    for i in range(2, 6):
        b.submit(i, [*PROMPT, i], 30)
    b.run()
    assert changes(b, 1) == ["pause", "swap"]
    assert b.control(1, "resume").state in ("swapped", "running")
    b.run()
    assert changes(b, 1) == ["pause", "swap", "resume"]
    assert b.tokens(1) == answer(PROMPT, 40)
    assert (b.finish(1).n_recomputed, b.finish(1).n_cached) == (0, 0)


def test_a_downgrade_is_told_with_its_reason() -> None:
    """And the request goes on as background work."""
    b = Bench()
    b.submit(1, PROMPT, 40)
    b.step(5)
    assert b.control(1, "downgrade") == wire.Controlled(1, "downgrade", "running")
    assert b.changes(1) == [wire.Change(1, "downgrade", "operator")]
    again = b.control(1, "downgrade")
    assert (again.state, again.detail) == ("running", "it is background work already")
    b.run()
    assert b.tokens(1) == answer(PROMPT, 40)


@pytest.mark.parametrize("action", ["pause", "resume", "downgrade"])
def test_what_changes_nothing_says_why(action: str) -> None:
    """Unknown requests have no state; the words are for a person."""
    b = Bench()
    assert b.control(99, action) == wire.Controlled(99, action, "", "there is no such live request")
    b.submit(1, PROMPT, 5)
    b.run()
    assert b.control(1, action).detail == "there is no such live request"
    b.submit(2, PROMPT, 30)
    b.step(3)
    assert b.control(2, "resume") == wire.Controlled(2, "resume", "running", "it is not paused")
    b.control(2, "pause")
    assert b.control(2, "pause") == wire.Controlled(2, "pause", "paused", "it is paused already")
    b.send(to_engine.Abort(2))
    b.run()
    assert b.finish(2).reason == "aborted"


def test_preempted_background_is_told_and_counted() -> None:
    """Change and Finish agree: one "swap" and one "resume" for each time that it lost its slot."""
    b = Bench(slots=3, turn_us=20_000)
    for i in range(1, 8):
        b.submit(i, [*PROMPT, i], 60, tenant=f"t{i}", request_class="background")
    b.run(20_000)
    n_preempted = 0
    for i in range(1, 8):
        told = changes(b, i)
        assert told == ["swap", "resume"] * (len(told) // 2)
        assert b.finish(i).n_preempted == len(told) // 2
        n_preempted += b.finish(i).n_preempted
        assert b.tokens(i) == answer([*PROMPT, i], 60)
    totals = last_status(b).totals
    assert (totals.preemptions[PreemptionKind.SWAP], totals.resumes) == (n_preempted, n_preempted)
    assert n_preempted > 0


def test_a_request_that_waits_too_long_expires_and_the_others_do_not() -> None:
    """It ends once, as expired, without a start and without compute."""
    b = Bench(slots=3)
    for i in range(1, 4):
        b.submit(i, PROMPT, 300, queue_timeout_ms=600)  # these have their slots soon
    b.submit(4, PROMPT, 5, queue_timeout_ms=100)
    b.submit(5, PROMPT, 5, queue_timeout_ms=3_600_000)
    b.run()
    assert b.finish(4) == wire.Finish(4, "expired", len(PROMPT), 0, 0)
    assert not [s for m in b.steps for s in m.starts if s.request_id == 4]
    assert [b.finish(i).reason for i in (1, 2, 3, 5)] == ["length"] * 4
    assert last_status(b).totals.expired == 1


def test_an_idle_engine_waits_until_the_next_timeout() -> None:
    """All that is there is paused: it sleeps until the moment at which a request expires, and then says so."""
    b = Bench()
    b.submit(1, PROMPT, 5, queue_timeout_ms=500)
    b.send(to_engine.Control(1, "pause"))
    b.run()
    assert b.mail.waits[-1] == 500 * MS
    assert last_status(b).classes[RequestClass.INTERACTIVE].paused == 1
    b.clock.advance(500 * MS)
    b.step()
    assert b.finish(1).reason == "expired"
    assert last_status(b).classes[RequestClass.INTERACTIVE].paused == 0, "the last word of an idle engine must be true"
    b.run()
    assert b.mail.waits[-1] is None


def test_an_idle_engine_reports_what_an_abort_changed() -> None:
    """A paused request that never had a slot leaves: nothing is to be computed, but the levels are others."""
    b = Bench()
    b.submit(1, PROMPT, 5)
    b.send(to_engine.Control(1, "pause"))
    b.run()
    b.send(to_engine.Abort(1))
    b.step()
    assert last_status(b).classes[RequestClass.INTERACTIVE].paused == 0
