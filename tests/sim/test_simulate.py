"""Scenarios through the production scheduler in virtual time: nothing lost, deterministic, fair."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from poise.config import Settings
from poise.config.settings import StoreSettings
from poise.engine.ports import Row, Sampled
from poise.scheduler.planning.plan import StepPlan, StepResult
from poise.scheduler.policy import CostPrior
from poise.scheduler.request import Event, Finished
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire.to_engine import Accounts
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import load_scenario, parse_scenario
from poise_lab.sim import simulate as product
from poise_lab.sim.costs import Costs
from poise_lab.sim.simulate import Options, Simulation, SimulationFailure
from poise_lab.sim.world import TemplateTokens, ignored
from tests.sim.checking.faults import Fault
from tests.sim.checking.simulate import simulate
from tests.sim.exact_runner import ExactRunner

FOLDER = Path(__file__).parents[2] / "scenarios"
SCENARIOS = sorted(path for path in FOLDER.glob("*.toml") if path.stem not in ("storm", "trace"))
STORM = FOLDER / "storm.toml"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_of_a_scenario_ends_and_leaves_nothing(path: Path, seed: int) -> None:
    """Invariants 2, 3 and 11 after every step (inside simulate), and at the end."""
    done = simulate(load_scenario(path), Settings(), seed)
    assert done.records
    assert all(r.outcome in ("length", "aborted") for r in done.records)
    assert all(pool.slots_held == pool.cells_used == 0 for pool in done.final.pools.values())


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_what_is_checked_is_what_poise_sim_runs(path: Path) -> None:
    """Without faults, what computes and what only counts take the same time; nobody who watches changes anything."""
    plain = product.simulate(load_scenario(path), Settings(), 1)
    checked = simulate(load_scenario(path), Settings(), 1)
    assert (plain.steps, plain.elapsed_ns) == (checked.steps, checked.elapsed_ns)
    assert plain.final.totals == checked.final.totals
    assert [(r.outcome, r.times_ns) for r in plain.records] == [(r.outcome, r.times_ns) for r in checked.records]


@pytest.mark.parametrize(("name", "options"), [("mixed", "Options()"), ("storm", "Options(n_steps=300), tuple(Fault)")])
def test_the_same_seed_gives_the_same_journal_under_any_hash_seed(name: str, options: str) -> None:
    """Invariant 9: equal inputs, equal event log, also in another process with another PYTHONHASHSEED."""
    code = (
        "from pathlib import Path; from poise.config import Settings; from poise_lab.scenarios.parser import load_scenario;"
        "from poise_lab.sim.simulate import Options; from tests.sim.checking.faults import Fault;"
        "from tests.sim.checking.simulate import simulate;"
        f"print(simulate(load_scenario(Path({str(FOLDER / (name + '.toml'))!r})), Settings(), 3, {options}).digest)"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": s},
            cwd=FOLDER.parent,
            capture_output=True,
            check=True,
        ).stdout
        for s in ("0", "1", "4242")
    ]
    assert len(set(digests)) == 1
    assert digests[0].strip()


def ttft_ms(done: Simulation, client: str, share: float) -> float:
    values = sorted((r.first_ns - r.sent_ns) / 1e6 for r in done.records if r.client == client and r.first_ns)
    return values[int(share * (len(values) - 1))]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_reader_of_long_prompts_does_not_freeze_chats(seed: int) -> None:
    """In the mixed load, chat gaps stay near the step's target, though 3,000-token prompts are read all the time."""
    done = simulate(load_scenario(FOLDER / "mixed.toml"), Settings(), seed)
    gaps = sorted(g / 1e6 for r in done.records if r.client == "chat" for g in r.gaps_ns)
    target_ms = Settings().classes.interactive.itl_target_ms
    assert gaps[int(0.95 * len(gaps))] < 2 * target_ms
    assert ttft_ms(done, "chat", 0.95) < 3000


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_flood_does_not_hold_up_a_polite_tenant(seed: int) -> None:
    """Sixteen requests in flight of one tenant: the other's TTFT is a tenth of the flood's own."""
    done = simulate(load_scenario(FOLDER / "flood.toml"), Settings(), seed)
    assert ttft_ms(done, "polite", 0.95) < 0.15 * ttft_ms(done, "flood", 0.95)


def test_a_slow_machine_is_learnt() -> None:
    """On a machine five times slower than the prior everything still ends, with a quantum a step."""
    slow = CostPrior(fixed_us=10_000, decode_us=25_000, prompt_us=20_000, attended_us=5)
    costs = Costs(dict.fromkeys(("short", "long"), slow))
    done = simulate(load_scenario(FOLDER / "flood.toml"), Settings(), 1, Options(costs=costs))
    assert {r.outcome for r in done.records} == {"length"}


def test_the_way_to_the_engine_counts_twice() -> None:
    """A lone client: each first token is later by the way there and back, and so is each next request."""
    scenario = load_scenario(FOLDER / "single.toml")
    settings = Settings(store=StoreSettings(write_through=False))  # else it meets what is done while nobody asks for anything
    near, far = (simulate(scenario, settings, 1, Options(costs=Costs(way_us=way_us))).records for way_us in (0.0, 5000.0))
    for number, (one, other) in enumerate(zip(near, far, strict=False)):
        assert one.first_ns is not None
        assert other.first_ns is not None
        assert other.first_ns - other.sent_ns == one.first_ns - one.sent_ns + 10_000_000
        assert other.sent_ns == one.sent_ns + number * 10_000_000


def test_turns_add_tokens_that_are_new() -> None:
    """What a template writes around an answer is in the prompt of every later turn, and computed once."""
    scenario = load_scenario(FOLDER / "chat.toml")
    plain, written = (
        simulate(scenario, Settings(), 1, Options(template=template)).records for template in (None, TemplateTokens(14, 11))
    )
    added = {b.n_prompt - a.n_prompt for a, b in zip(plain, written, strict=False) if a.client == b.client == "talker"}
    assert added == {14 + 11 * turn for turn in range(5)}


def test_a_queue_that_is_full_answers_every_request() -> None:
    """An open loop far over capacity: each request is either finished or refused, none is dropped."""
    scenario = parse_scenario(
        """
        name = "overload"
        description = "40 requests a second on a machine that can do one"
        duration_s = 20
        drain_s = 0
        [[clients]]
        name = "crowd"
        tenant = "crowd"
        class = "interactive"
        arrival = { kind = "poisson", rate_per_s = 40.0 }
        prompt_tokens = { kind = "uniform", low = 20, high = 400 }
        output_tokens = { kind = "uniform", low = 5, high = 60 }
        """,
        "overload",
    )
    done = simulate(scenario, Settings(), 5)
    outcomes = Counter(r.outcome for r in done.records)
    assert set(outcomes) == {"length", "queue_share"}
    assert outcomes["queue_share"] > outcomes["length"] > 10


def test_newcomers_by_the_dozen_delay_one_that_plays_fair_by_its_turn() -> None:
    """One short question at a time, beside one that keeps sixteen in flight. Bursts of tenants that nobody has seen, or that
    come back, cost a few turns, and lose it nothing."""
    quiet, crowded = (
        simulate(load_scenario(FOLDER / "flood.toml"), Settings(), 3, faults=faults) for faults in ((), (Fault.NEWCOMERS,))
    )
    n_newcomers = sum(r.client == "newcomer" for r in crowded.records)
    assert n_newcomers > 20
    waits = [[(r.first_ns or 1 << 60) - r.sent_ns for r in done.records if r.tenant == "polite"] for done in (quiet, crowded)]
    assert len(waits[1]) > len(waits[0]) / 2
    grain_ns = Settings().scheduler.fairness_grain_ms * 1_000_000
    assert max(waits[1]) <= n_newcomers * grain_ns, "a grain each, at most"
    assert sorted(waits[1])[len(waits[1]) // 2] < 2 * grain_ns


@pytest.mark.parametrize("seed", range(1, 5))
def test_storms_break_no_invariant(seed: int) -> None:
    """Every fault at once over every kind of traffic; `make sim` does the same with more seeds and steps."""
    done = simulate(load_scenario(STORM), Settings(), seed, Options(n_steps=400), tuple(Fault), echo=7 * (seed % 2))
    assert done.steps >= 400
    assert all(r.outcome != "unfinished" for r in done.records)


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_alone_breaks_no_invariant(fault: Fault) -> None:
    """What fails under one fault alone is easier to understand than what fails under all."""
    done = simulate(load_scenario(STORM), Settings(), 1, Options(n_steps=250), (fault,))
    assert all(r.outcome != "unfinished" for r in done.records)


@pytest.mark.parametrize(
    ("name", "faults"), [("single", ()), ("chat", (Fault.ENGINE_CRASH,)), ("chat", (Fault.STALL, Fault.SLOW))]
)
def test_lone_streams_draft_and_break_no_invariant(name: str, faults: tuple[Fault, ...]) -> None:
    """Each text is what it would have been, on a machine where further rows cost little."""
    cheap = dict.fromkeys(("short", "long"), CostPrior(fixed_us=8000, decode_us=1500, prompt_us=1000, attended_us=0.1))
    options = Options(costs=Costs(cheap), priors=cheap, n_steps=1500)
    accepted = [
        sum(n for message in heard for n in (d.n_accepted for d in message.drafts))
        for heard in (_heard(load_scenario(FOLDER / f"{name}.toml"), seed, options, faults) for seed in (1, 2))
    ]
    assert min(accepted) > 20


def _heard(scenario: Scenario, seed: int, options: Options, faults: tuple[Fault, ...]) -> list[wire.Step]:
    """The steps that the world was told of."""
    heard: list[wire.Step] = []

    def listen(message: wire.ToGateway) -> None:
        if isinstance(message, wire.Step):
            heard.append(message)

    simulate(scenario, Settings(), seed, replace(options, listeners=(listen,)), faults, echo=9)
    return heard


@pytest.mark.parametrize("seed", [1, 2])
def test_streams_survive_engines(seed: int) -> None:
    """Engines die in the middle of a step, one after the other: each stream is whole, in order, and what it would have been. (The
    witness sees to that; here it had to.)"""
    done = simulate(load_scenario(STORM), Settings(), seed, Options(n_steps=1000), (Fault.ENGINE_CRASH,))
    assert done.n_crashes > 0
    assert {r.outcome for r in done.records} <= {"length", "aborted"}


@pytest.mark.parametrize(("what", "name"), [("output", "open"), ("seed", "_sample")])
def test_a_continuation_that_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch, what: str, name: str) -> None:
    """A sampler that begins again, or draws from a state that died with the engine."""
    if what == "output":
        opens = ExactRunner.open
        monkeypatch.setattr(ExactRunner, "open", lambda self, i, prompt, sampling, output=(): opens(self, i, prompt, sampling))
    else:
        sample, draws = ExactRunner._sample, count(1)

        def drifting(self: ExactRunner, request_id: int, state: int) -> Sampled:
            return sample(self, request_id, state + (next(draws) % 997 == 0))

        monkeypatch.setattr(ExactRunner, "_sample", drifting)
    with pytest.raises(SimulationFailure) as failure:
        simulate(load_scenario(STORM), Settings(), 1, Options(n_steps=1000), (Fault.ENGINE_CRASH,))
    assert "undisturbed it is" in str(failure.value.__cause__)


def test_a_run_that_is_stopped_drains() -> None:
    """After n_steps nothing new arrives; what is in flight ends."""
    done = simulate(load_scenario(FOLDER / "flood.toml"), Settings(), 1, Options(n_steps=40))
    assert 40 <= done.steps < 400
    assert {r.outcome for r in done.records} == {"length"}


def test_a_conversation_repeats_what_was_said() -> None:
    """The second turn's prompt is the first one's, the answer to it and new tokens; so its cells are found again."""
    scenario = parse_scenario(
        """
        name = "talk"
        description = "one conversation after another"
        duration_s = 20
        drain_s = 0
        [[clients]]
        name = "talker"
        tenant = "talker"
        class = "interactive"
        requests = 4
        turns = 2
        shared_prefix_tokens = 32
        temperature = 0.0
        arrival = { kind = "closed" }
        prompt_tokens = 40
        output_tokens = 16
        """,
        "talk",
    )
    done = simulate(scenario, Settings(), 1)
    assert [r.n_prompt for r in done.records] == [72, 128, 72, 128]
    # The prefix is found from the second request on, and in each second turn everything before its own tokens.
    assert done.final.totals.cached_tokens == 80 + 32 + 80


def test_a_token_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference does not depend on the runner: a cell computed from another's state gives another token."""
    load = ExactRunner.execute

    def mixed_up(self: ExactRunner, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        sampled = load(self, pool, rows)
        if len(rows) > 2:
            first, second = (self._cells[pool][row.slot] for row in rows[:2])
            first[-1] = second[-1]
        return sampled

    monkeypatch.setattr(ExactRunner, "execute", mixed_up)
    with pytest.raises(SimulationFailure) as failure:
        simulate(load_scenario(FOLDER / "sustained.toml"), Settings(), 1)
    assert "undisturbed it is" in str(failure.value.__cause__)


def test_a_request_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that the scheduler does not report leaves its client waiting for ever."""
    complete = Scheduler.complete

    def silent(self: Scheduler, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        events = complete(self, plan, result, now_ns)
        return [e for e in events if not isinstance(e, Finished)]

    monkeypatch.setattr(Scheduler, "complete", silent)
    with pytest.raises(SimulationFailure):
        simulate(load_scenario(FOLDER / "single.toml"), Settings(), 1)


BEHAVIOUR = """
name = "behaviour"
description = "For tests."
duration_s = 30.0
drain_s = 5.0
[[clients]]
name = "{name}"
tenant = "t"
class = "interactive"
arrival = {arrival}
prompt_tokens = 40
output_tokens = 20
{more}
"""


def behaviour(arrival: str, more: str = "", name: str = "chat") -> Simulation:
    text = BEHAVIOUR.format(name=name, arrival=arrival, more=more)
    return simulate(parse_scenario(text, "behaviour.toml", FOLDER), Settings(), 1)


def test_clients_leave_by_the_clock() -> None:
    """One that looks at the clock leaves with what it has; one that waits for its first token stays once it is there."""
    closed = '{ kind = "closed" }'
    gone = behaviour(closed, "cancel_after_ms = 150\n")
    assert "aborted" in {r.outcome for r in gone.records}
    assert any(r.tokens for r in gone.records if r.outcome == "aborted")
    assert all(r.finished_ns is not None and r.finished_ns - r.sent_ns < 300e6 for r in gone.records)
    stays = behaviour(closed, "cancel_after_ms = 150\ncancel_before_first_token = true\n")
    assert {(r.outcome, len(r.tokens)) for r in stays.records} <= {("length", 20), ("aborted", 0)}
    late = behaviour(closed, "cancel_after_ms = 1000000\nrequests = 3\n")
    assert late.elapsed_ns < 30e9  # Nobody waits for the patience of those who are served.


def test_malformed_requests_reach_no_engine() -> None:
    """They take their client's time, and nothing else."""
    assert behaviour('{ kind = "closed" }', "malformed_share = 1.0\n").records == []
    some = behaviour('{ kind = "poisson", rate_per_s = 2.0 }', "malformed_share = 0.5\n")
    assert 10 < len(some.records) < 50
    assert {r.outcome for r in some.records} == {"length"}


def test_a_paced_loop_keeps_its_rate() -> None:
    """Not before it is due, and not before the answer."""
    done = behaviour('{ kind = "closed", rate_per_s = 0.5 }')
    assert [r.sent_ns / 1e9 for r in done.records] == [2.0 * n for n in range(15)]


def test_a_trace_is_followed(tmp_path: Path) -> None:
    """Arrivals and lengths are the trace's."""
    trace = tmp_path / "t.csv"
    trace.write_text("timestamp,context,generated\n5,30,4\n7,50,6\n", encoding="utf-8")
    text = BEHAVIOUR.format(name="chat", arrival='{ kind = "trace", time_scale = 2.0 }', more="")
    text = text.replace("prompt_tokens = 40", 'prompt_tokens = { kind = "trace" }')
    done = simulate(parse_scenario(text, "t.toml", FOLDER, trace), Settings(), 1)
    assert [(r.sent_ns, r.n_prompt, len(r.tokens)) for r in done.records] == [(0, 30, 20), (4_000_000_000, 50, 20)]


def test_what_is_not_simulated_is_said() -> None:
    """Readers, malformed requests and kills are named."""
    more = 'malformed_share = 0.1\nread_rate = { tokens_per_s = 1.0 }\n[[events]]\nkind = "kill_engine"\nat_s = 1.0\n'
    text = BEHAVIOUR.format(name="chat", arrival='{ kind = "closed" }', more=more)
    lines = ignored(parse_scenario(text, "x"))
    assert [("chat" in line, "kill" in line) for line in lines] == [(True, False), (True, False), (False, True)]
    assert ignored(load_scenario(FOLDER / "mixed.toml")) == []
    (line,) = ignored(load_scenario(FOLDER / "newcomers.toml"))
    assert "each new key is an account here" in line


def test_the_next_engine_is_told_what_accounts_owe() -> None:
    """The last engine's words on them, as a gateway would have kept them; the first engine is told that there are none."""
    told: list[tuple[int, list[str]]] = [(0, [])]
    restored: list[tuple[int, list[str]]] = []

    def hear(message: wire.ToGateway) -> None:
        if isinstance(message, Accounts):
            told.append((message.at_ns, [account.name for account in message.accounts]))

    def observe(_: Scheduler, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        match kind, values:
            case "restore", (list() as accounts, int(at_ns)):
                restored.append((at_ns, [account.name for account in accounts]))
                assert restored[-1] == told[-1]

    options = Options(n_steps=3000, observers=(observe,), listeners=(hear,))
    done = simulate(load_scenario(STORM), Settings(), 1, options, (Fault.ENGINE_CRASH,))
    assert len(restored) == done.n_crashes + 1 > 1
    assert any(names for _, names in restored)
