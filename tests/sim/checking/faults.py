"""What can go wrong around a scheduler, drawn from a seed: which faults there are, when they strike and what they do.

Each fault draws from a generator of its own, so that a run with fewer faults keeps the others' moments. Nothing here touches
the engine: the world delivers the messages, and the simulated runner asks whether to be slow or to fail."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, SchedulerPolicy, TenantPolicy
from poise.scheduler.power import NO_LIMITS, Background, PowerLimits
from poise.scheduler.request import Control, Hold, RequestClass
from poise.wire import to_engine
from poise_lab.scenarios.model import SHARED_PREFIX_SEED, Arrival, Client, Length, PlannedRequest, Segment, rng_of
from poise_lab.sim.world import TEMPLATE, segment_tokens

NS_PER_S = 1_000_000_000


class Fault(StrEnum):
    """The faults by name; the line below each one is what docs/simulation.md says of it."""

    SLOW = "slow"
    """Some steps take 2 to 20 times as long."""
    CANCEL = "cancel"
    """Many requests are aborted at one moment, in whatever state they are; some of them twice."""
    RUNNER = "runner"
    """The runner fails in the middle of a step: a batch, or a store, load, copy or move of KV cells."""
    STUCK = "stuck"
    """Clients stop reading: their requests are paused, and resumed or cancelled later."""
    STALL = "stall"
    """Readers fall behind: their requests are held, swapped out or not, and go on or are cancelled later."""
    CLOCK = "clock"
    """The clock jumps forward by seconds."""
    OPERATOR = "operator"
    """An operator pauses, resumes and downgrades requests at random, known ones and unknown ones."""
    FORGET = "forget"
    """A tenant's cached prefixes are dropped."""
    ERASE = "erase"
    """All that is kept of a tenant is erased."""
    ENGINE_CRASH = "engine_crash"
    """The engine dies in the middle of a step; a new one is given all that was live."""
    BURST = "burst"
    """Dozens of requests arrive at one moment."""
    NEWCOMERS = "newcomers"
    """Dozens of tenants arrive at one moment with a request each, some never seen before, some that come back."""
    MISFIT = "misfit"
    """Requests arrive that can never fit."""
    TIMEOUT = "timeout"
    """Some requests give up if they wait too long in the queue."""
    TEMPLATE = "template"
    """A template that prompts begin with is declared, and again with another text."""
    POWER = "power"
    """Power, heat and quotas change: duty, rows, length of steps, the store's budget, and background pauses or is put away."""
    SHAPE = "shape"
    """The run has pools, queues, a store and tenants' limits of other sizes, mostly too small ones."""


PERIOD_S = {
    Fault.CANCEL: 25.0,
    Fault.STUCK: 6.0,
    Fault.STALL: 4.0,
    Fault.CLOCK: 40.0,
    Fault.OPERATOR: 3.0,
    Fault.FORGET: 15.0,
    Fault.ERASE: 60.0,
    Fault.ENGINE_CRASH: 40.0,
    Fault.BURST: 30.0,
    Fault.NEWCOMERS: 20.0,
    Fault.MISFIT: 10.0,
    Fault.TEMPLATE: 45.0,
    Fault.POWER: 15.0,
}
"""Mean virtual seconds between two strikes of the faults that come by time."""

SLOW_RATE = 0.02
BATCH_FAILURE_RATE = 1 / 400
OPERATION_FAILURE_RATE = 1 / 40
TIMEOUT_SHARE = 0.3
CELLS_NOBODY_HAS = 10_000
UNKNOWN_ID = 1 << 40

UNLIMITED = to_engine.Power(NO_LIMITS)
_PROMPT, _OUTPUT = Length("lognormal", 1, 3000, 60.0, 1.2), Length("lognormal", 1, 400, 20.0, 1.0)
BURST_CLIENT = Client("burst", "burst", "interactive", 1, Arrival("poisson"), _PROMPT, _OUTPUT)


def parse_faults(names: str) -> tuple[Fault, ...]:
    """ "all", "" (none) or names with commas between, in any order. Raises ValueError with one line."""
    if names == "all":
        return tuple(Fault)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in list(Fault):
            raise ValueError(f"unknown fault {name!r}; there are: all, {', '.join(Fault)}")
    return tuple(fault for fault in Fault if fault in wanted)


@dataclass(frozen=True, slots=True)
class Live:
    """A request as the world sees it: delivered, not ended."""

    request_id: int
    tenant: str
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Arriving:
    """A request that a fault adds to the scenario's."""

    client: Client
    planned: PlannedRequest


Disturbance = tuple[int, "to_engine.ToEngine | Arriving"]
"""So many nanoseconds from now, and what happens then."""


class EngineCrash(BaseException):
    """The engine process is gone. Nothing in it can catch this, or clean up."""


class Faults:
    """The chosen faults of one run. `strikes` says what they do to the world; the runner asks `pace` and `fails`."""

    def __init__(self, chosen: Iterable[Fault], seed: int) -> None:
        self.chosen = tuple(chosen)
        self._rngs = {fault: rng_of(seed, fault) for fault in Fault}
        self._next_ns = {f: self._gap_ns(f) for f in self.chosen if f in PERIOD_S}
        self._stopped = False
        self._forget_ids = 0
        self._crash_in: int | None = None
        """The engine dies when the runner has been asked so many times more for something that can fail."""

    def stop(self) -> None:
        """From now on nothing goes wrong. What a strike has announced for later still happens: pauses end."""
        self._stopped = True
        self._crash_in = None
        self._next_ns.clear()

    @property
    def next_ns(self) -> int | None:
        """When the next strike is due."""
        return min(self._next_ns.values(), default=None)

    def policy(self, policy: SchedulerPolicy, tenants: Sequence[str]) -> SchedulerPolicy:
        """The run's policy: other sizes and limits with SHAPE, else the given one."""
        if Fault.SHAPE not in self.chosen:
            return policy
        return _other_shape(policy, tenants, self._rngs[Fault.SHAPE])

    def pace(self) -> float:
        """How many times its normal time the runner takes for the present step."""
        if self._stopped or Fault.SLOW not in self.chosen:
            return 1.0
        rng = self._rngs[Fault.SLOW]
        return 2.0 * 10.0 ** rng.random() if rng.random() < SLOW_RATE else 1.0

    def fails(self, kind: str, subject: object) -> bool:
        """The runner's fault hook: whether this batch ("execute") or KV operation ("apply") fails. Raises EngineCrash."""
        if self._crash_in is not None:
            self._crash_in -= 1
            if self._crash_in < 0:
                self._crash_in = None
                raise EngineCrash
        if self._stopped or Fault.RUNNER not in self.chosen:
            return False
        return self._rngs[Fault.RUNNER].random() < (BATCH_FAILURE_RATE if kind == "execute" else OPERATION_FAILURE_RATE)

    def restart_ns(self) -> int:
        """How long it takes until there is an engine again."""
        return int(self._rngs[Fault.ENGINE_CRASH].uniform(0.2, 5.0) * NS_PER_S)

    def queue_timeout_ms(self) -> int:
        """How long the next request of the world may wait; 0: for ever."""
        if self._stopped or Fault.TIMEOUT not in self.chosen:
            return 0
        rng = self._rngs[Fault.TIMEOUT]
        return rng.randint(50, 20_000) if rng.random() < TIMEOUT_SHARE else 0

    def clock_jump_ns(self, now_ns: int) -> int:
        """How far the clock jumps now; mostly 0."""
        if not self._is_due(Fault.CLOCK, now_ns):
            return 0
        return int(self._rngs[Fault.CLOCK].uniform(0.5, 20.0) * NS_PER_S)

    def strikes(self, now_ns: int, live: Sequence[Live]) -> list[Disturbance]:
        """What the faults that are due by now do, in the order of their declaration. Modifies their next moments."""
        found: list[Disturbance] = []
        for fault in self.chosen:
            if fault is not Fault.CLOCK and self._is_due(fault, now_ns):
                found += self._strike(fault, live)
        return found

    def _strike(self, fault: Fault, live: Sequence[Live]) -> list[Disturbance]:
        rng = self._rngs[fault]
        match fault:
            case Fault.CANCEL:
                return _cancel_storm(rng, live)
            case Fault.STUCK:
                return _stuck_readers(rng, live)
            case Fault.STALL:
                return _slow_readers(rng, live)
            case Fault.OPERATOR:
                return _operator(rng, live)
            case Fault.FORGET | Fault.ERASE:
                self._forget_ids += 1
                tenant = rng.choice(sorted({one.tenant for one in live}) or ["nobody"])
                message = to_engine.Forget if fault is Fault.FORGET else to_engine.Erase
                return [(0, message(self._forget_ids, tenant))]
            case Fault.ENGINE_CRASH:
                self._crash_in = rng.randint(0, 6)
                return []
            case Fault.BURST:
                return [(0, _arriving(rng)) for _ in range(rng.randint(10, 80))]
            case Fault.NEWCOMERS:
                return [(0, _newcomer(rng)) for _ in range(rng.randint(10, 60))]
            case Fault.MISFIT:
                return [(0, _arriving(rng, n_more=CELLS_NOBODY_HAS if rng.random() < 0.3 else rng.randint(2000, 9000)))]
            case Fault.TEMPLATE:
                seed = SHARED_PREFIX_SEED if rng.random() < 0.7 else rng.getrandbits(31)
                return [(0, to_engine.Template(TEMPLATE, segment_tokens(Segment(seed, rng.choice((20, 60, 90))))))]
            case Fault.POWER:
                return _power(rng)
        raise AssertionError(f"{fault} does not come by time")

    def _is_due(self, fault: Fault, now_ns: int) -> bool:
        when_ns = self._next_ns.get(fault)
        if when_ns is None or when_ns > now_ns:
            return False
        self._next_ns[fault] = now_ns + self._gap_ns(fault)
        return True

    def _gap_ns(self, fault: Fault) -> int:
        return int(self._rngs[fault].expovariate(1 / PERIOD_S[fault]) * NS_PER_S)


def _cancel_storm(rng: random.Random, live: Sequence[Live]) -> list[Disturbance]:
    share = rng.choice((0.3, 0.7, 1.0))
    found: list[Disturbance] = []
    for one in live:
        if rng.random() < share:
            found += [(0, to_engine.Abort(one.request_id))] * rng.choice((1, 1, 1, 2))
    return found


def _stuck_readers(rng: random.Random, live: Sequence[Live]) -> list[Disturbance]:
    """One to four of those that have had a token stop reading. One in three leaves in the end, the others catch up."""
    reading = [one for one in live if one.n_tokens]
    found: list[Disturbance] = []
    for one in rng.sample(reading, min(len(reading), rng.randint(1, 4))):
        found.append((0, to_engine.Control(one.request_id, Control.PAUSE)))
        after_ns = int(rng.uniform(0.2, 20.0) * NS_PER_S)
        leaves = rng.random() < 1 / 3
        end = to_engine.Abort(one.request_id) if leaves else to_engine.Control(one.request_id, Control.RESUME)
        found.append((after_ns, end))
    return found


def _slow_readers(rng: random.Random, live: Sequence[Live]) -> list[Disturbance]:
    """One to six requests, in whatever state they are, are held in one way after the other. One in five leaves in the end."""
    found: list[Disturbance] = []
    for one in rng.sample(live, min(len(live), rng.randint(1, 6))):
        when_ns = 0
        for _ in range(rng.randint(1, 4)):
            found.append((when_ns, to_engine.Hold(one.request_id, rng.choice((Hold.PAUSE, Hold.SWAP, Hold.RUN)))))
            when_ns += int(rng.expovariate(0.5) * NS_PER_S)
        leaves = rng.random() < 1 / 5
        found.append((when_ns, to_engine.Abort(one.request_id) if leaves else to_engine.Hold(one.request_id, Hold.RUN)))
    return found


def _operator(rng: random.Random, live: Sequence[Live]) -> list[Disturbance]:
    """One action on one request, now and then an unknown one. Whatever is paused is resumed within half a minute."""
    known = [one.request_id for one in live]
    request_id = rng.choice(known) if known and rng.random() < 0.95 else UNKNOWN_ID
    action = rng.choice(list(Control))
    found: list[Disturbance] = [(0, to_engine.Control(request_id, action))]
    if action is Control.PAUSE:
        found.append((int(rng.uniform(0.0, 30.0) * NS_PER_S), to_engine.Control(request_id, Control.RESUME)))
    return found


def _power(rng: random.Random) -> list[Disturbance]:
    """Limits for up to twenty seconds."""
    duty_ppm, rows = rng.choice((1_000_000, 700_000, 500_000, 123_457)), rng.choice((0, 0, 1, 2))
    step_us = rng.choice((0, 30_000))
    background, store_ppm = rng.choice(list(Background)), rng.choice((1_000_000, 500_000, 0))
    message = to_engine.Power(PowerLimits(duty_ppm, rows, background, step_us, store_ppm))
    return [(0, message), (int(rng.uniform(0.5, 20.0) * NS_PER_S), UNLIMITED)]


def _arriving(rng: random.Random, n_more: int = 0) -> Arriving:
    client = BURST_CLIENT
    n_prompt, n_output = client.prompt_tokens.draw(rng) + n_more, client.output_tokens.draw(rng)
    return Arriving(client, PlannedRequest(None, n_prompt, n_output, None, rng.getrandbits(31)))


def _newcomer(rng: random.Random) -> Arriving:
    """A short request of a tenant that nobody has seen, or of one in some hundreds."""
    name = f"new-{rng.getrandbits(40):010x}" if rng.random() < 0.7 else f"known-{rng.randrange(300)}"
    client = replace(BURST_CLIENT, name="newcomer", tenant=name)
    return Arriving(client, PlannedRequest(None, rng.randint(1, 120), rng.randint(1, 40), None, rng.getrandbits(31)))


def _other_shape(policy: SchedulerPolicy, tenants: Sequence[str], rng: random.Random) -> SchedulerPolicy:
    """Sizes that press: few slots, short ones, short queues, a small store, tight limits. Every combination is a valid one."""
    cells, long_cells = rng.choice((256, 512, 1024, 4096)), rng.choice((4096, 8192))
    pools = {
        SHORT_POOL: replace(policy.pools[SHORT_POOL], n_slots=rng.choice((1, 2, 3, 5, 8, 12)), slot_cells=cells),
        LONG_POOL: replace(policy.pools[LONG_POOL], n_slots=rng.choice((1, 2)), slot_cells=long_cells),
    }
    classes = {}
    for request_class, limits in policy.classes.items():
        first = request_class is RequestClass.INTERACTIVE
        classes[request_class] = replace(
            limits,
            queue_max=rng.choice((2, 8, 32, 64)),
            slots_max=pools[SHORT_POOL].n_slots if first else rng.randint(1, pools[SHORT_POOL].n_slots),
            heavy_tokens=min(limits.heavy_tokens, cells - 1),
            heavy_max=rng.randint(1, pools[LONG_POOL].n_slots),
            downgrade_output_tokens=rng.choice((0, 0, 16, 64)) if first else 0,
            downgrade_served_us=rng.choice((0, 0, 500_000)) if first else 0,
        )
    store = replace(
        policy.store,
        budget_bytes=rng.choice((0, 300, 2_000, 20_000)) * policy.pools[SHORT_POOL].cell_bytes,
        tenant_share=rng.choice((0.1, 0.5, 1.0)),
        prefix_reuse=rng.random() < 0.8,
        prefix_min_cells=rng.choice((8, 16, 64)),
    )
    limited = {name: _tenant_policy(rng) for name in tenants}
    return replace(
        policy,
        pools=pools,
        classes=classes,
        store=store,
        tenants=limited,
        turn_us=rng.choice((1, 100_000, 1_000_000)),
        preemptions_max=rng.choice((0, 1, 2, 8)),
        hole_steps=rng.choice((1, 2, 10)),
        quantum_tokens=rng.choice((1, 16, 64)),
        chunk_tokens=rng.choice(({}, {LONG_POOL: 64})),
        lengths=replace(policy.lengths, first_tokens=rng.choice((1, 64, 512))),  # at 1, many outgrow their slot
    )


def _tenant_policy(rng: random.Random) -> TenantPolicy:
    return TenantPolicy(
        weight=rng.choice((0.25, 1.0, 1.0, 4.0)),
        running_max=rng.choice((0, 0, 0, 1, 3)),
        queue_max=rng.choice((0, 0, 4)),
        tokens_per_minute=rng.choice((0, 0, 0, 3000)),
    )
