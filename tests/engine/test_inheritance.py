"""From one engine to the next through shared memory, with a simulated model: what is found, what is not; and text is right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from poise.engine.arena import Arena, make_memory
from poise.engine.journal import JournalError
from poise.engine.ports import Sampled
from poise.scheduler.memory.store import Purpose
from poise.scheduler.planning.plan import DropEntry, KvOperation, LoadSlot, StoreSlot
from poise.scheduler.power import PowerLimits
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise.wire.status import Status
from poise_lab.sim.replay import replay
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench
from tests.engine.reference import answer
from tests.sim.exact_runner import ExactRunner

AGENTS = 6
POOLS = [PoolInfo("short", 10, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]


class Killed(BaseException):
    """The engine ends here, as by `kill -9`: nothing that it would do afterwards is done."""


class _Dying(ExactRunner):
    """Is killed at an operation or a pass that the test names."""

    when: Any = staticmethod(lambda what: False)

    def apply(self, operation: KvOperation) -> int:
        if isinstance(operation, StoreSlot) and self.when(operation) and self._arena is not None:
            n_cells = operation.n_cells
            self._arena.reserve(operation.entry, 8 * n_cells, n_cells)[: 4 * n_cells] = b"\x77" * 4 * n_cells
            raise Killed
        if not isinstance(operation, StoreSlot) and self.when(operation):
            raise Killed
        return super().apply(operation)

    def execute(self, pool: str, rows: Any) -> list[Sampled]:
        if self.when(pool):
            raise Killed
        return super().execute(pool, rows)


@pytest.fixture
def fd() -> Iterator[int]:
    made = make_memory(1 << 20)
    yield made
    os.close(made)


def bench(fd: int, *, keep: bool = True, when: Any = None, **changes: Any) -> Bench:
    arena, clock = Arena(fd), VirtualClock()
    runner = _Dying(POOLS, clock=clock, arena=arena)
    if when is not None:
        runner.when = when
    b = Bench(arena=arena, runner=runner, clock=clock, **changes)
    b.send(to_engine.Inherit(keep))
    return b


def prompt(agent: int, n: int = 240) -> list[int]:
    return [(agent * 131 + k * 7) % 900 + 1 for k in range(n)]


def turns(b: Bench, n_output: int = 20) -> None:
    """A turn of each of six agents."""
    for agent in range(1, AGENTS + 1):
        b.submit(agent, prompt(agent), n_output, tenant=f"agent{agent}")
    b.run()


def next_turns(b: Bench, n_output: int = 20) -> list[float]:
    """Their next ones, each beginning with all that was said. The share of it that was cached; text is as it ought to be."""
    shares = []
    for agent in range(1, AGENTS + 1):
        said = prompt(agent) + answer(prompt(agent), n_output)
        more = [*said, 5, 6, 7]
        b.submit(100 + agent, more, 10, tenant=f"agent{agent}")
        b.run()
        assert b.tokens(100 + agent) == answer(more, 10)
        shares.append(b.start(100 + agent).n_cached / len(said))
    return shares


def test_six_agents_find_their_contexts_after_a_kill(fd: int) -> None:
    """At least 95 % of each, from slots that were warm and from the store; without the memory nothing at all."""
    turns(bench(fd))
    assert min(next_turns(bench(fd))) >= 0.95
    assert max(next_turns(Bench())) == 0.0


def test_it_goes_on_over_many_engines(fd: int) -> None:
    """The tenth has it from the first, and entries never get in each other's way."""
    turns(bench(fd))
    for _ in range(8):
        b = bench(fd)
        b.submit(50, [9] * 300, 5, tenant="other")
        b.run()
    assert min(next_turns(bench(fd))) >= 0.95


def test_nobody_else_finds_them(fd: int) -> None:
    """Neither another tenant, nor one with another secret."""
    turns(bench(fd))
    b = bench(fd)
    b.submit(1, prompt(1), 10, tenant="agent2")
    b.run()
    assert b.start(1).n_cached == 0
    assert max(next_turns(bench(fd, secret=b"other"))) == 0.0


def test_an_engine_that_is_told_to_drops_everything(fd: int) -> None:
    """And one of another model does."""
    turns(bench(fd))
    b = bench(fd, keep=False)
    b.run()
    assert b.engine.arena is not None
    assert b.engine.arena.committed == []
    assert max(next_turns(b)) == 0.0
    other = bench(fd)
    other.engine._inheritance._fingerprint = b"another"
    assert max(next_turns(other)) == 0.0


@pytest.mark.parametrize("which", range(AGENTS))
def test_what_was_half_written_is_never_read(fd: int, which: int) -> None:
    """Killed in the middle of any copy: the others are found, that one is computed again, and nothing of it is left."""
    n_stored = 0

    def in_the_middle(operation: object) -> bool:
        nonlocal n_stored
        n_stored += isinstance(operation, StoreSlot)
        return n_stored == which + 1

    with suppress(Killed):
        turns(bench(fd, when=in_the_middle))
    assert n_stored == which + 1
    b = bench(fd)
    b.run()
    assert b.scheduler.snapshot().totals.inherited_entries == which
    with Arena(fd) as arena:
        assert b"\x77" * 64 not in bytes(arena._bytes[arena._begin :][: 1 << 20])
    shares = next_turns(b)
    assert sum(share >= 0.95 for share in shares) == which
    assert sum(share == 0 for share in shares) == AGENTS - which


@pytest.mark.parametrize("dies_of", ["load", "pass"])
def test_what_an_engine_read_in_its_last_step_is_not_handed_on(fd: int, dies_of: str) -> None:
    """Whether it died of putting it into a slot or of computing with it. What others have is."""
    turns(bench(fd))
    loads = 0

    def dies(what: object) -> bool:
        nonlocal loads
        loads += isinstance(what, LoadSlot)
        return loads > 0 and (isinstance(what, LoadSlot) if dies_of == "load" else isinstance(what, str))

    with pytest.raises(Killed):
        next_turns(bench(fd, when=dies))
    shares = next_turns(bench(fd))
    assert shares[0] == 0.0
    assert min(shares[1:]) >= 0.95


def test_what_was_read_and_did_no_harm_is_handed_on(fd: int) -> None:
    """A death in a later step is not held against it."""
    turns(bench(fd))
    next_turns(bench(fd))
    assert min(next_turns(bench(fd))) >= 0.95


def test_a_swapped_request_goes_on_from_its_cells_in_another_engine(fd: int) -> None:
    """Readmitted, it finds them as a prefix; its output is that of an undisturbed run."""
    b = bench(fd, slots=1)
    b.submit(1, prompt(1), 100, tenant="a")
    while len(b.tokens(1)) < 30:
        b.step()
    b.send(to_engine.Hold(1, "swap"))
    b.step(2)
    known = b.tokens(1)
    assert b.scheduler.snapshot().store.entries_by_purpose[Purpose.SWAP] == 1
    new = bench(fd, slots=1)
    new.submit(1, prompt(1), 100, tenant="a", output=known)
    new.run()
    assert new.start(1).n_cached >= 0.95 * (240 + len(known))
    assert known + new.tokens(1) == answer(prompt(1), 100)


def test_an_erased_tenant_is_not_handed_on(fd: int) -> None:
    """Neither its prefixes nor what its live requests have in the store, also if the engine dies before it has overwritten it."""
    for dies in (False, True):
        armed: list[bool] = []
        b = bench(fd, slots=2, when=lambda operation, armed=armed: bool(armed) and isinstance(operation, DropEntry))
        b.submit(1, prompt(1), 20, tenant="alice")
        b.submit(2, prompt(2), 20, tenant="bob")
        b.run()
        b.submit(3, prompt(3), 100, tenant="alice")
        b.step(30)
        b.send(to_engine.Hold(3, "swap"))
        b.step(2)
        b.send(to_engine.Erase(1, "alice"))
        armed += [True] * dies
        with suppress(Killed):
            b.step()
        with Arena(fd) as left:
            assert {entry.tenant for entry in left.inherit(b"the same")} == {"bob"}
        new = bench(fd, slots=2)
        new.submit(1, prompt(1), 5, tenant="alice")
        new.submit(3, prompt(3), 5, tenant="alice")
        new.run()
        assert (new.start(1).n_cached, new.start(3).n_cached) == (0, 0)


def test_what_it_takes_over_is_in_the_journal_and_is_repeated(fd: int) -> None:
    """And a tenant's part of it goes when it is erased."""
    turns(bench(fd))
    b = bench(fd)
    next_turns(b)
    lines = list(b.engine.journal.lines())
    result = replay(lines)
    assert result.n_plans
    assert not result.difference
    assert replay([line for line in lines if '"inherit"' not in line]).difference
    b.send(to_engine.Erase(1, "agent1"))
    b.run()
    (erased,) = [m for m in b.mail.sent if isinstance(m, wire.Erased)]
    assert erased.journal_entries == 2
    text = "".join(b.engine.journal.lines())
    assert "agent1" not in text
    assert "agent2" in text
    with pytest.raises(JournalError, match="erased"):
        replay(b.engine.journal.lines())


def test_books_memory_and_report_agree(fd: int) -> None:
    """What it took over counts as what it stored itself; resident memory is what the arena has; a smaller store gives it back."""
    turns(bench(fd))
    b = bench(fd, rss_bytes=lambda: 1 << 30, weights_bytes=1000)
    arena = b.engine.arena
    assert arena is not None
    next_turns(b)
    status = [m for m in b.mail.sent if isinstance(m, Status)][-1]
    store = b.scheduler.snapshot().store
    assert b.runner.stored_bytes == sum(store.bytes_by_purpose.values())
    assert status.unaccounted_bytes == (1 << 30) - 1000 - arena.resident_bytes
    before = arena.file_bytes
    b.send(to_engine.Power(PowerLimits(store_ppm=1)))
    b.run()
    assert b.runner.stored_bytes == arena.resident_bytes == 0
    assert arena.file_bytes < before - AGENTS * 2000
