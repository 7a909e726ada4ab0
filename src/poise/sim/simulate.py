"""Run a scenario through the production scheduler and engine loop, on virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from poise.config import Settings, to_policy
from poise.engine.core import Engine
from poise.engine.journal import Journal
from poise.scenarios import Scenario
from poise.scheduler.policy import CostPrior
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.snapshot import Snapshot
from poise.sim.clock import VirtualClock
from poise.sim.runner import SimRunner
from poise.sim.world import Record, World
from poise.wire.messages import PoolInfo


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a run. `digest` is a hash of every journal line: equal runs have equal digests."""

    scenario: Scenario
    seed: int
    steps: int
    elapsed_ns: int
    records: list[Record]
    final: Snapshot
    digest: str


def simulate(scenario: Scenario, settings: Settings, seed: int, cost: CostPrior | None = None) -> Simulation:
    """Run until every request has ended. The scheduler's invariants are checked after every step.

    `cost` is what the simulated machine really costs (default: CostPrior's own figures); the scheduler has to learn it.
    """
    pools = [
        PoolInfo(name, pool.slots, pool.slot_tokens, True, 0)
        for name, pool in (("short", settings.pools.short), ("long", settings.pools.long))
    ]
    clock = VirtualClock()
    world = World(scenario, seed, clock)
    policy = to_policy(settings, slot_cells={p.name: p.slot_cells for p in pools})
    scheduler = Scheduler(policy)
    runner = SimRunner(pools, clock=clock, cost=cost)
    engine = Engine(scheduler, runner, clock, inbox=world, outbox=world, journal=Journal(capacity=None))
    digest = blake2b(digest_size=16)
    try:
        while True:
            engine.step()
            scheduler.check()
    except EOFError:
        pass
    for line in engine.journal.lines():
        digest.update(line.encode())
    return Simulation(
        scenario=scenario,
        seed=seed,
        steps=engine.counters.steps,
        elapsed_ns=clock.now_ns(),
        records=world.records,
        final=scheduler.snapshot(),
        digest=digest.hexdigest(),
    )
