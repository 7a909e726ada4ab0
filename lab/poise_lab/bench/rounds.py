"""A whole run: scenarios x rounds x servers, in an order that treats both servers alike.

1. In a round both servers get the same requests: same arrivals, lengths and words.
2. The server that goes first alternates from round to round, so that neither always finds the warmer machine.
3. Only one server is under load at a time, and none before it says that it is ready.
4. A round counts when it is complete: an interrupted one is dropped, the ones before it are kept."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import aiohttp

from poise_lab.bench.load import RoundLoad, RoundResult
from poise_lab.bench.target import EngineKiller, Target, discover, new_session, probe, wait_ready
from poise_lab.scenarios.model import Scenario

OURS = "ours"
THEIRS = "theirs"
READY_TIMEOUT_S = 60.0
_TICK_S = 0.5

# Called twice a second and at the end of each server's turn:
# scenario, side, round from 0, seconds of load so far, whether the turn has ended.
OnTick = Callable[[str, str, int, float, bool], None]


@dataclass(frozen=True, slots=True)
class ScenarioSource:
    """A scenario, where it was read, and its text, which goes into the result."""

    scenario: Scenario
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run. `urls` has OURS and, in a comparison, THEIRS; `extensions` says who gets `service_tier`. With `allow_kill`
    our engine may be killed where a scenario says so; theirs never is."""

    sources: tuple[ScenarioSource, ...]
    urls: dict[str, str]
    extensions: dict[str, bool]
    n_rounds: int
    seed: int
    text_seed: int
    pause_s: float
    allow_kill: bool = False
    engine_pid: int | None = None
    key: str = ""
    """Of all clients, where servers want one; empty: each client has its own."""
    max_tokens: bool = True
    """False: clients name none and leave when they have what they would have asked for."""
    ready_timeout_s: float = READY_TIMEOUT_S


@dataclass(slots=True)
class Round:
    """One round of one scenario: the result of each side, in the order in which they ran."""

    number: int
    seed: int
    results: dict[str, RoundResult]


@dataclass(slots=True)
class ScenarioRun:
    """The finished rounds of one scenario."""

    source: ScenarioSource
    rounds: list[Round] = field(default_factory=list)


class Benchmark:
    """Runs the rounds one after another. `runs` holds what is finished, at any time; an exception leaves it valid."""

    def __init__(self, options: RunOptions, on_tick: OnTick) -> None:
        self.targets: dict[str, Target] = {}
        self.runs: list[ScenarioRun] = []
        self.complete = False
        self._options = options
        self._on_tick = on_tick
        self._started = False
        self._killer = EngineKiller(options.urls[OURS], options.engine_pid) if options.allow_kill else None

    async def run(self) -> None:
        """Raises TargetError when a server is not there, or is not ready in time before one of its turns."""
        options = self._options
        async with new_session(options.key) as session:
            for side, url in options.urls.items():
                # A server that refuses the first question is absent; one that answers may still be loading its model.
                await probe(session, url)
                await wait_ready(session, url, options.ready_timeout_s)
                self.targets[side] = await discover(session, url, options.extensions[side])
            for source in options.sources:
                run = ScenarioRun(source)
                self.runs.append(run)
                for number in range(options.n_rounds):
                    run.rounds.append(await self._round(session, source.scenario, number))
        self.complete = True

    async def _round(self, session: aiohttp.ClientSession, scenario: Scenario, number: int) -> Round:
        seed = self._options.seed + number
        sides = list(self._options.urls)
        if number % 2:
            sides.reverse()
        results: dict[str, RoundResult] = {}
        for side in sides:
            if self._started:
                await asyncio.sleep(self._options.pause_s)
            self._started = True
            target = self.targets[side]
            await wait_ready(session, target.url, self._options.ready_timeout_s)
            killer = self._killer if side == OURS else None
            asked = self._options
            shared = partial(RoundLoad, text_seed=asked.text_seed, key=asked.key, max_tokens=asked.max_tokens)
            load = shared(scenario, target, session, seed=seed, killer=killer)
            ticker = asyncio.create_task(self._tick(load, scenario, side, number))
            try:
                results[side] = await load.run()
            finally:
                ticker.cancel()
            self._on_tick(scenario.name, side, number, scenario.duration_s, True)
        return Round(number, seed, results)

    async def _tick(self, load: RoundLoad, scenario: Scenario, side: str, number: int) -> None:
        while True:
            self._on_tick(scenario.name, side, number, min(load.elapsed_s, scenario.duration_s), False)
            await asyncio.sleep(_TICK_S)
