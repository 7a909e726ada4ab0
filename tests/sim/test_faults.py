"""The faults themselves: named, seeded, independent of each other."""

from __future__ import annotations

import pytest

from poise.config import Settings, to_policy
from poise.wire import to_engine
from tests.sim.checking.faults import PERIOD_S, UNKNOWN_ID, EngineCrash, Fault, Faults, Live, parse_faults

LIVE = [Live(i, f"t{i % 3}", n_tokens=i % 5) for i in range(1, 30)]


def strikes(faults: Faults, seconds: int) -> list[tuple[int, object]]:
    """What strikes in the first seconds, asked for ten times a second."""
    found: list[tuple[int, object]] = []
    for tenth in range(seconds * 10):
        now_ns = tenth * 100_000_000
        found += [(now_ns + delay_ns, what) for delay_ns, what in faults.strikes(now_ns, LIVE)]
    return found


def test_faults_are_chosen_by_name() -> None:
    """All, none, or some in any order; an unknown one is named together with those there are."""
    assert parse_faults("all") == tuple(Fault)
    assert parse_faults("") == ()
    assert parse_faults("runner, slow") == (Fault.SLOW, Fault.RUNNER)
    with pytest.raises(ValueError, match="'earthquake'; there are: all, slow"):
        parse_faults("earthquake")


def test_the_same_seed_strikes_alike_whatever_else_was_chosen() -> None:
    """A run with fewer faults keeps the others' moments: a failure can be narrowed down fault by fault."""
    alone = strikes(Faults([Fault.OPERATOR], 5), 60)
    among = [s for s in strikes(Faults(Fault, 5), 60) if isinstance(s[1], to_engine.Control)]
    assert alone
    assert all(one in among for one in alone)
    assert strikes(Faults([Fault.OPERATOR], 6), 60) != alone


@pytest.mark.parametrize("fault", [f for f in PERIOD_S if f not in (Fault.CLOCK, Fault.ENGINE_CRASH)])
def test_faults_that_come_by_time_come(fault: Fault) -> None:
    """In ten minutes each one strikes at least once, and never after it was stopped."""
    faults = Faults([fault], 1)
    assert strikes(faults, 600)
    faults.stop()
    assert faults.next_ns is None
    assert not faults.strikes(10**15, LIVE)


def test_every_pause_has_an_end() -> None:
    """Whoever is paused is resumed or cancelled later; else the run could not drain."""
    found = strikes(Faults([Fault.STUCK, Fault.OPERATOR], 3), 600)
    for when_ns, what in found:
        if isinstance(what, to_engine.Control) and what.action == "pause" and what.request_id != UNKNOWN_ID:
            ends = [
                e
                for at_ns, e in found
                if at_ns >= when_ns
                and isinstance(e, to_engine.Abort | to_engine.Control)
                and e.request_id == what.request_id
                and e != what
            ]
            assert ends, f"{what} has no end"


def test_every_hold_has_an_end() -> None:
    """The last word of a strike on each request lets it go, or ends it."""
    faults, holds = Faults([Fault.STALL], 3), set()
    for _ in range(40):
        now_ns = faults.next_ns
        assert now_ns is not None
        last: dict[int, object] = {}
        for _, what in sorted(faults.strikes(now_ns, LIVE), key=lambda strike: strike[0]):
            assert isinstance(what, to_engine.Hold | to_engine.Abort)
            last[what.request_id] = what
            holds.add(getattr(what, "hold", "abort"))
        assert all(isinstance(what, to_engine.Abort) or what == to_engine.Hold(i, "run") for i, what in last.items())
    assert holds == {"run", "pause", "swap", "abort"}


def test_an_engine_dies_within_seven_of_the_runners_acts() -> None:
    """Not at the strike, but in the middle of a step; once."""
    faults = Faults([Fault.ENGINE_CRASH], 1)
    now_ns = faults.next_ns
    assert now_ns is not None
    assert faults.strikes(now_ns, LIVE) == []
    with pytest.raises(EngineCrash):
        any(faults.fails("execute", "short") for _ in range(7))
    assert not any(faults.fails("execute", "short") for _ in range(50))


def test_nothing_goes_wrong_unless_it_was_chosen() -> None:
    """Without faults the runner is on time and does not fail, nobody gives up, the policy is the given one."""
    faults, policy = Faults((), 1), to_policy(Settings())
    assert {faults.pace() for _ in range(100)} == {1.0}
    assert not any(faults.fails("execute", "short") for _ in range(2000))
    assert {faults.queue_timeout_ms() for _ in range(100)} == {0}
    assert faults.policy(policy, ["a"]) is policy


def test_shapes_differ_by_seed_and_fit() -> None:
    """Every drawn policy is a valid one: what a class may hold exists, and heavy prompts have a pool that takes them."""
    policy = to_policy(Settings())
    shapes = [Faults([Fault.SHAPE], seed).policy(policy, ["a", "b"]) for seed in range(40)]
    assert len({str(shape) for shape in shapes}) > 30
    for shape in shapes:
        for limits in shape.classes.values():
            assert 1 <= limits.slots_max <= shape.pools["short"].n_slots
            assert 1 <= limits.heavy_max <= shape.pools["long"].n_slots
            assert limits.heavy_tokens < shape.pools["short"].slot_cells
