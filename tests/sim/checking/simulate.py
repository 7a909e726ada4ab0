"""Run a scenario as `poise_lab.sim.simulate` does, with faults, and with every invariant asked after every step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from poise.config import Settings
from poise.engine.blackbox import read_words
from poise.scheduler.admission import cells_max
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise_lab.scenarios.model import Scenario
from poise_lab.sim.runner import VirtualClock
from poise_lab.sim.simulate import Life, Options, Simulation, SimulationFailure, pool_infos, sim_policy
from tests.scheduler.books import check_scheduler
from tests.sim.checking.checkers import Checkers
from tests.sim.checking.faults import EngineCrash, Fault, Faults
from tests.sim.checking.witness import Witness
from tests.sim.checking.world import CheckedWorld
from tests.sim.exact_runner import ExactRunner

BOOKS_STEPS = 8
"""The scheduler's books are compared with what is really there in every so many steps, and whenever nothing is live."""
N_VOCAB = 1000
END_RATE = 150
"""With faults, one token in so many ends a request that does not ignore ends."""


@dataclass(frozen=True, slots=True)
class Checked(Simulation):
    """`final` and `journal` are the last engine's, if others died before it."""

    n_crashes: int = 0


def simulate(
    scenario: Scenario, settings: Settings, seed: int, options: Options | None = None, faults: Sequence[Fault] = (), echo: int = 0
) -> Checked:
    """Run until every request has ended. Raises SimulationFailure when an invariant is broken.

    `echo`: texts repeat themselves, so that lone streams draft; see `ExactRunner`."""
    options = options or Options()
    going_wrong, clock, digest = Faults(faults, seed), VirtualClock(), blake2b(digest_size=16)
    policy = sim_policy(settings, options.priors)
    policy = going_wrong.policy(policy, sorted({c.tenant for c in scenario.clients}))
    end_rate = END_RATE if faults else 0
    most = cells_max(policy.pools)
    witness = Witness(n_vocab=N_VOCAB, end_rate=end_rate, may_fail=Fault.RUNNER in faults, slot_cells=most, echo=echo)
    world = CheckedWorld(scenario, seed, clock, options, going_wrong, witness)
    pace = options.costs.pace(seed)
    n_steps, n_crashes = 0, 0
    while True:
        runner = ExactRunner(
            pool_infos(policy),
            n_vocab=N_VOCAB,
            clock=clock,
            cost=options.costs.pools,
            pace=lambda pool, predicted_us: pace(pool, predicted_us * going_wrong.pace()),
            end_rate=end_rate,
            echo=echo,
            carry_us_per_cell=options.costs.carry_us_per_cell,
            fault=going_wrong.fails,
        )
        life = CheckedLife(policy, world, clock, runner, options, digest)
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
    return Checked(scenario, seed, n_steps, *found)


class CheckedLife(Life):
    """An engine, and those who watch it. Its `run` raises EngineCrash."""

    def __init__(
        self, policy: SchedulerPolicy, world: CheckedWorld, clock: VirtualClock, runner: ExactRunner, options: Options,
        digest: blake2b,
    ) -> None:  # fmt: skip
        observers, listeners = (self._recorded, *options.observers), (self._heard, *options.listeners)
        super().__init__(policy, world, clock, runner, replace(options, observers=observers, listeners=listeners), digest)
        self._checkers = Checkers(policy, runner, self.scheduler.served)

    def after_turn(self) -> None:
        check_scheduler(self.scheduler)
        super().after_turn()
        self._checkers.after_step()
        if self._checkers.is_idle or self.engine.n_steps % BOOKS_STEPS == 0:
            self._checkers.compare_books(self.scheduler.snapshot())

    def _recorded(self, _: Scheduler, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        self._checkers.recorded(now_ns, kind, values)

    def _heard(self, message: wire.ToGateway) -> None:
        self._checkers.heard(message)
