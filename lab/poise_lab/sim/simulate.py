"""Run a scenario through the production scheduler and engine loop, on virtual time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b

import msgspec

from poise.config import Settings, to_policy
from poise.engine.core import Engine
from poise.engine.journal import ENTRIES_MAX, Journal
from poise.engine.ports import Runner
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.policy import CostPrior, SchedulerPolicy
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.snapshot import Snapshot
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise_lab.scenarios.model import Scenario
from poise_lab.sim.costs import Costs
from poise_lab.sim.runner import SimRunner, VirtualClock
from poise_lab.sim.world import RequestResult, TemplateTokens, World

CELL_BYTES = 23_040
"""What a cell takes in the host store: SmolLM2-135M's keys and values in f16."""

Observer = Callable[[Scheduler, int, str, tuple[object, ...]], None]
"""Called with every entry of the journal, as it is made, and with whom it is about."""


@dataclass(frozen=True, slots=True)
class Options:
    """What besides the scenario, the settings and the seed decides about a run.

    costs           what the simulated machine really costs (default: CostPrior's figures)
    priors          what the scheduler takes it to cost at first (default: CostPrior's figures); it learns from each step
    n_steps         after so many steps nothing new arrives, and the rest drains; 0: when the scenario ends
    keep_journal    keep every entry of the journal instead of the last ones
    template        what a chat template adds to the prompts
    power           what may be used from the start on
    observers       are called with every entry of the journal, as it is made
    listeners       are called with every message of the engine"""

    costs: Costs = field(default_factory=Costs)
    priors: Mapping[str, CostPrior] | None = None
    n_steps: int = 0
    keep_journal: bool = False
    template: TemplateTokens | None = None
    power: to_engine.Power | None = None
    observers: Sequence[Observer] = ()
    listeners: Sequence[Callable[[wire.ToGateway], None]] = ()


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a run. `digest` is a hash of every journal entry: equal runs have equal digests."""

    scenario: Scenario
    seed: int
    steps: int
    elapsed_ns: int
    records: list[RequestResult]
    final: Snapshot
    digest: str
    journal: Journal


class SimulationFailure(Exception):
    """The engine broke off. `__cause__` is how; a journal of the last steps is kept."""

    def __init__(self, scenario: Scenario, seed: int, step: int, elapsed_ns: int, journal: Journal) -> None:
        super().__init__(f"{scenario.name}, seed {seed}: step {step}, {elapsed_ns / 1e9:.3f} virtual s")
        self.seed = seed
        self.step = step
        self.journal = journal


class _Recorder(Journal):
    """A journal that hashes each entry into `digest` and shows it to observers."""

    def __init__(
        self, entries_max: int | None, observers: Iterable[Callable[[int, str, tuple[object, ...]], None]], digest: blake2b
    ) -> None:
        super().__init__(entries_max)
        self.digest = digest
        self._observers = tuple(observers)
        self._encode = msgspec.msgpack.Encoder().encode

    def record(self, now_ns: int, kind: str, *values: object) -> None:
        super().record(now_ns, kind, *values)
        self.digest.update(self._encode((now_ns, kind, values)))
        for observer in self._observers:
            observer(now_ns, kind, values)


class _Ears:
    """The engine's Outbox: what it sends reaches all listeners in order, the world last."""

    def __init__(self, *listeners: Callable[[wire.ToGateway], None]) -> None:
        self._listeners = listeners

    def send(self, message: wire.ToGateway) -> None:
        for listener in self._listeners:
            listener(message)


def sim_policy(settings: Settings, priors: Mapping[str, CostPrior] | None = None) -> SchedulerPolicy:
    """The policy of the simulated server: the settings', with cells of the default model's size."""
    policy = to_policy(settings, priors=priors)
    return replace(policy, pools={name: replace(p, cell_bytes=CELL_BYTES) for name, p in policy.pools.items()})


def simulate(scenario: Scenario, settings: Settings, seed: int, options: Options | None = None) -> Simulation:
    """Run until every request has ended. Raises SimulationFailure when the engine breaks off."""
    options = options or Options()
    policy, clock, costs = sim_policy(settings, options.priors), VirtualClock(), options.costs
    world = World(scenario, seed, clock, options.template, costs.way_us, options.power)
    runner = SimRunner(pool_infos(policy), clock, costs, costs.pace(seed))
    digest = blake2b(digest_size=16)
    life = Life(policy, world, clock, runner, options, digest)
    try:
        life.run(options.n_steps)
    except Exception as error:
        raise SimulationFailure(scenario, seed, life.engine.n_steps, clock.now_ns(), life.journal) from error
    found = (clock.now_ns(), world.records, life.scheduler.snapshot(), digest.hexdigest(), life.journal)
    return Simulation(scenario, seed, life.engine.n_steps, *found)


def pool_infos(policy: SchedulerPolicy) -> list[PoolInfo]:
    """The simulated pools that a policy is for."""
    return [PoolInfo(name, p.n_slots, p.slot_cells, True, 0, p.cell_bytes) for name, p in policy.pools.items()]


class Life:
    """A new engine, nothing in its slots, nothing known, in a world."""

    def __init__(
        self, policy: SchedulerPolicy, world: World, clock: VirtualClock, runner: Runner, options: Options, digest: blake2b
    ) -> None:
        self._world, self._clock, self._costs = world, clock, options.costs
        self._n_rows = 0
        """Of the batches of the present turn."""
        self.scheduler = Scheduler(policy)
        observers = [partial(observer, self.scheduler) for observer in (self._planned, *options.observers)]
        self.journal = _Recorder(None if options.keep_journal else ENTRIES_MAX, observers, digest)
        self.journal.record_policy(policy)
        outbox = _Ears(*options.listeners, world.send)
        self.engine = Engine(self.scheduler, runner, clock, inbox=world, outbox=outbox, journal=self.journal)

    def run(self, n_steps: int) -> None:
        """Turn the engine's loop until the world has nothing left. After `n_steps` (0: never) the world stops."""
        while True:
            self._n_rows = 0
            try:
                self.engine.step()
            except EOFError:
                return
            self.after_turn()
            if n_steps and self.engine.n_steps >= n_steps and not self._world.is_stopped:
                self._world.stop()

    def after_turn(self) -> None:
        """A turn also takes the loop's own time; else time passes in the runner alone."""
        self._clock.advance(self._costs.loop_ns(self._n_rows))

    def _planned(self, _: Scheduler, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        match kind, values:
            case "plan", (StepPlan() as plan,):
                self._n_rows = sum(len(batch.chunks) for batch in plan.batches)
