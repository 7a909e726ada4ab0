"""The live judge: two servers, the settings in force and a candidate's, under the same load in alternating rounds.

Only one of them is under load at a time; who goes first changes from round to round; each round has a seed of its own, and both
get the requests of that seed. Servers stay for as long as their settings are asked for again."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from poise.config import LoadedSettings
from poise.engine.journal import JournalError, read_journal
from poise.operator_token import find_token
from poise_lab.bench.comparison import compare
from poise_lab.bench.document import run_as_json
from poise_lab.bench.rounds import OURS, THEIRS, Benchmark, RunOptions, ScenarioSource
from poise_lab.bench.target import TargetError, new_session
from poise_lab.sim.calibrate import Calibration, calibrate
from poise_lab.sim.world import TemplateTokens, template_tokens
from poise_lab.tune.children import CannotMeasure, Server
from poise_lab.tune.goal import Hopeless, Measured, count_failed
from poise_lab.tune.knobs import Changes

PAUSE_S = 2.0
PAUSE_SHARE = 0.1
HOPELESS_ROUNDS = 3
"""After so many rounds a target that does not even look better is given up: this can only refuse, never accept."""
START_S = 6.0
"""What starting a server takes, before it is known."""

Round = dict[str, Any]
"""A round as `poise bench --json` has it."""


@dataclass(slots=True)
class LiveJudge:
    """See the module's text. Close it to end its servers. `turn_s` is what one server's turn takes, as far as it is known."""

    loaded: LoadedSettings
    source: ScenarioSource
    folder: Path
    rounds: int
    turn_s: float = 0.0
    _servers: dict[str, Server] = field(default_factory=dict)
    _n_turns: int = 0

    @property
    def pause_s(self) -> float:
        """Rest before each server's turn, in proportion to short ones."""
        return min(PAUSE_S, PAUSE_SHARE * self.source.scenario.duration_s)

    def cost_s(self, rounds: int | None = None) -> float:
        """What a comparison will take."""
        scenario = self.source.scenario
        turn_s = self.turn_s or scenario.duration_s + scenario.drain_s / 2 + scenario.warmup_requests
        return START_S + 2 * (rounds or self.rounds) * (turn_s + self.pause_s)

    def compare(self, before: Changes, after: Changes, seed: int, hopeless: Hopeless, until: float = float("inf")) -> Measured:
        """Raises CannotMeasure. It stops where `hopeless` says so, and before a round that would end after `until`."""
        done: list[Round] = []
        stopped = ""
        try:
            urls = {OURS: self._server(after, keep=before).url, THEIRS: self._server(before, keep=after).url}
            for number in range(self.rounds):
                began = time.monotonic()
                if began + 2 * (self.turn_s + self.pause_s) > until:
                    stopped = "the time was over"
                    break
                sides = dict(reversed(urls.items())) if number % 2 else urls
                done.append(live_round(self.source, sides, seed + number, self.pause_s))
                self._n_turns += 1
                self.turn_s += ((time.monotonic() - began) / 2 - self.pause_s - self.turn_s) / self._n_turns
                is_early = HOPELESS_ROUNDS <= number + 1 < self.rounds
                if is_early and hopeless(compare(done, THEIRS, done, OURS)[0]):
                    stopped = f"no better after {number + 1} rounds"
                    break
        except CannotMeasure:
            self.close()  # one of them may be lost: what comes next begins with new ones
            raise
        estimates, _ = compare(done, THEIRS, done, OURS)
        before_failed, after_failed = (count_failed([one["sides"][side] for one in done]) for side in (THEIRS, OURS))
        seeds = tuple(one["seed"] for one in done)
        return Measured(estimates, seeds, (before_failed, after_failed), stopped=stopped)

    def calibrate(self, changes: Changes, seed: int) -> tuple[Calibration, TemplateTokens]:
        """What the steps of a server with these settings cost under this load, and what the chat template adds to prompts."""
        return calibrated_round(self.source, self._server(changes, keep=changes).url, seed, self.pause_s)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _server(self, changes: Changes, keep: Changes) -> Server:
        """The server with these settings; those that are needed no more are ended first, to have their memory."""
        wanted, kept = _key(changes), _key(keep)
        for key in [key for key in self._servers if key not in (wanted, kept)]:
            self._servers.pop(key).close()
        if wanted not in self._servers:
            self._servers[wanted] = Server(self.loaded, changes, self.folder)
        return self._servers[wanted]


def live_round(source: ScenarioSource, urls: Mapping[str, str], seed: int, pause_s: float = PAUSE_S) -> Round:
    """One round of each server in turn, after a rest. Raises CannotMeasure when a server is lost."""
    time.sleep(pause_s)
    words = secrets.randbits(31)
    options = RunOptions((source,), dict(urls), dict.fromkeys(urls, True), 1, seed, text_seed=words, pause_s=pause_s)
    benchmark = Benchmark(options, lambda *_: None)
    try:
        asyncio.run(benchmark.run())
    except TargetError as error:
        raise CannotMeasure(str(error)) from error
    (run,) = benchmark.runs
    return dict(run_as_json(run)["rounds"][0])


def _key(changes: Changes) -> str:
    return msgspec.json.encode(changes, order="sorted").decode()


def calibrated_round(source: ScenarioSource, url: str, seed: int, pause_s: float = PAUSE_S) -> tuple[Calibration, TemplateTokens]:
    """What a server's steps cost under a load, by its flight recorder, and what the chat template adds to prompts.

    Steps before this round do not count: what another load's batches cost on average says little of this one's. Raises
    CannotMeasure."""
    n_before = read_journal(asyncio.run(_journal(url))[:1]).n_recorded
    done = live_round(source, {OURS: url}, seed, pause_s)
    try:
        found = calibrate(asyncio.run(_journal(url)), n_before)
    except JournalError as error:
        raise CannotMeasure(f"the simulator cannot be calibrated: {error}") from error
    return found, template_tokens(source.scenario, done["sides"][OURS]["requests"])


async def _journal(url: str) -> list[str]:
    headers = {"Authorization": f"Bearer {find_token(url)}"}
    async with new_session() as session, session.get(f"{url}/admin/journal", headers=headers) as response:
        text = await response.text()
        if response.status != 200:
            raise CannotMeasure(f"the flight recorder cannot be read: {response.status} {text[:200]}")
        return text.splitlines()
