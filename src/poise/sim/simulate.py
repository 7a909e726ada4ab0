"""Run a scenario through the production scheduler and engine loop, on virtual time, and check every step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import msgspec

from poise.config import Settings, to_policy
from poise.engine.blackbox import read_words
from poise.engine.core import Engine
from poise.engine.journal import ENTRIES_MAX, Journal
from poise.scenarios.model import Scenario
from poise.scheduler.admission import cells_max
from poise.scheduler.policy import CostPrior, SchedulerPolicy
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.snapshot import Snapshot
from poise.sim.checkers import Checkers
from poise.sim.costs import Costs, Pace
from poise.sim.faults import EngineCrash, Fault, Faults
from poise.sim.runner import SimRunner, VirtualClock
from poise.sim.witness import Witness
from poise.sim.world import RequestResult, TemplateTokens, World
from poise.wire import messages as wire
from poise.wire.messages import PoolInfo

BOOKS_STEPS = 8
"""The scheduler's books are compared with what is really there in every so many steps, and whenever nothing is live."""
CELL_BYTES = 23_040
"""What a cell takes in the host store: SmolLM2-135M's keys and values in f16."""
N_VOCAB = 1000
END_RATE = 150
"""With faults, one token in so many ends a request that does not ignore ends."""

Observer = Callable[[int, str, tuple[object, ...]], None]
"""Called with every entry of the journal, as it is made."""


@dataclass(frozen=True, slots=True)
class Options:
    """What besides the scenario, the settings and the seed decides about a run.

    costs           what the simulated machine really costs (default: CostPrior's figures)
    priors          what the scheduler takes it to cost at first (default: CostPrior's figures); it learns from each step
    faults          what goes wrong
    n_steps         after so many steps nothing new arrives or goes wrong, and the rest drains; 0: when the scenario ends
    keep_journal    keep every entry of the journal instead of the last ones
    template        what a chat template adds to the prompts
    observers       are called with every entry of the journal, as it is made
    listeners       are called with every message of the engine"""

    costs: Costs = field(default_factory=Costs)
    priors: Mapping[str, CostPrior] | None = None
    faults: Sequence[Fault] = ()
    n_steps: int = 0
    keep_journal: bool = False
    template: TemplateTokens | None = None
    observers: Sequence[Observer] = ()
    listeners: Sequence[Callable[[wire.ToGateway], None]] = ()


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a run. `digest` is a hash of every journal entry: equal runs have equal digests.

    `final` and `journal` are the last engine's, if others died before it."""

    scenario: Scenario
    seed: int
    steps: int
    elapsed_ns: int
    records: list[RequestResult]
    final: Snapshot
    digest: str
    journal: Journal
    n_crashes: int = 0


class SimulationFailure(Exception):
    """An invariant was broken, or the engine crashed. `__cause__` is how; a journal of the last steps is kept."""

    def __init__(self, scenario: Scenario, seed: int, step: int, elapsed_ns: int, journal: Journal) -> None:
        super().__init__(f"{scenario.name}, seed {seed}: step {step}, {elapsed_ns / 1e9:.3f} virtual s")
        self.seed = seed
        self.step = step
        self.journal = journal


class _Recorder(Journal):
    """A journal that hashes each entry into `digest` and shows it to observers."""

    def __init__(self, entries_max: int | None, observers: Iterable[Observer], digest: blake2b) -> None:
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
    """Run until every request has ended. Raises SimulationFailure when an invariant is broken."""
    options = options or Options()
    faults = Faults(options.faults, seed)
    policy = faults.policy(sim_policy(settings, options.priors), sorted({c.tenant for c in scenario.clients}))
    clock = VirtualClock()
    end_rate = END_RATE if options.faults else 0
    most = cells_max(policy.pools)
    witness = Witness(n_vocab=N_VOCAB, end_rate=end_rate, may_fail=Fault.RUNNER in options.faults, slot_cells=most)
    world = World(scenario, seed, clock, witness, faults, options.template, options.costs.way_us)
    pace, digest = options.costs.pace(seed, faults.pace), blake2b(digest_size=16)
    n_steps, n_crashes = 0, 0
    while True:
        life = _Life(policy, world, clock, faults, options, pace, digest)
        try:
            life.run(options.n_steps and max(1, options.n_steps - n_steps))
        except EngineCrash:
            n_steps, n_crashes = n_steps + life.engine.n_steps, n_crashes + 1
            ended = world.engine_lost(read_words(life.engine.box.words).request_ids)
            for listener in options.listeners:
                listener(wire.Step(0, [], [], ended))
            continue
        except Exception as error:
            n_steps += life.engine.n_steps
            raise SimulationFailure(scenario, seed, n_steps, clock.now_ns(), life.journal) from error
        break
    n_steps, final, journal = n_steps + life.engine.n_steps, life.scheduler.snapshot(), life.journal
    found = (clock.now_ns(), world.records, final, digest.hexdigest(), journal, n_crashes)
    return Simulation(scenario, seed, n_steps, *found)


class _Life:
    """A new engine, nothing in its slots, nothing known, and those who watch it; the rest stays when it dies."""

    def __init__(
        self, policy: SchedulerPolicy, world: World, clock: VirtualClock, faults: Faults, options: Options, pace: Pace,
        digest: blake2b,
    ) -> None:  # fmt: skip
        self.world, self.clock, self.costs = world, clock, options.costs
        runner = SimRunner(
            [PoolInfo(name, p.n_slots, p.slot_cells, True, 0, p.cell_bytes) for name, p in policy.pools.items()],
            n_vocab=N_VOCAB,
            clock=clock,
            cost=self.costs.pools,
            pace=pace,
            end_rate=END_RATE if options.faults else 0,
            carry_us_per_cell=self.costs.carry_us_per_cell,
            fault=faults.fails,
        )
        self.scheduler = Scheduler(policy)
        self.checkers = Checkers(policy, runner, self.scheduler.served)
        entries_max = None if options.keep_journal else ENTRIES_MAX
        self.journal = _Recorder(entries_max, (self.checkers.recorded, *options.observers), digest)
        self.journal.record_policy(policy)
        outbox = _Ears(self.checkers.heard, *options.listeners, world.send)
        self.engine = Engine(self.scheduler, runner, clock, inbox=world, outbox=outbox, journal=self.journal)

    def run(self, n_steps: int) -> None:
        """Turn the engine's loop until the world has nothing left, with every checker after every turn. Raises EngineCrash.

        After `n_steps` (0: never) the world stops. A step also takes the loop's own time; else time passes in the runner alone.
        """
        engine, scheduler, checkers = self.engine, self.scheduler, self.checkers
        while True:
            try:
                engine.step()
            except EOFError:
                return
            scheduler.check()
            self.clock.advance(self.costs.loop_ns(checkers.after_step()))
            if checkers.is_idle or engine.n_steps % BOOKS_STEPS == 0:
                checkers.compare_books(scheduler.snapshot())
            if n_steps and engine.n_steps >= n_steps and not self.world.is_stopped:
                self.world.stop()
