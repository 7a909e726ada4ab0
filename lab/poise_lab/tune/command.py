"""`poise tune`: prints the plan, runs the loop, writes the tuned file with its evidence; `--check` measures one again.

Exit codes: 0, also when nothing was found; of --check 0 when every value holds and 1 when one does not; 2 for what cannot be
used; 130 after Ctrl-C, with what was found so far written. The plan and a line for each trial go to stdout, errors to stderr."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from poise.config import ConfigError, LoadedSettings, load
from poise.llama.binding.library import EngineLibraryError
from poise.llama.files.cgroups import usable_threads
from poise.llama.files.gguf import ModelError
from poise_lab.bench.command import check_range, check_writable, failure_line, read_sources
from poise_lab.bench.rounds import ScenarioSource
from poise_lab.bench.target import TargetError
from poise_lab.scenarios.files import InputError
from poise_lab.tune import tunedfile
from poise_lab.tune.children import CannotMeasure, terminable
from poise_lab.tune.evidence import FORMAT, Evidence, describe, differences, read_evidence
from poise_lab.tune.goal import DEFAULT_GUARDS, DEFAULT_TARGET, Goal, parse_goal
from poise_lab.tune.knobs import STAGES, Knob, knobs, selected
from poise_lab.tune.loop import HOLDS, NO_LONGER, Tuner, check_values, unknown_keys
from poise_lab.tune.measures import HostMeasures, host_measures, plan_text, shortened
from poise_lab.tune.tunedfile import DEFAULT_FILE, evidence_path

COMMAND = "poise tune"
INTERRUPTED = 130
MINUTES, ROUNDS, ROUNDS_MIN, ROUND_S = 45.0, 5, 5, 20.0
BUSY = 0.5
"""Load average for each core from which on somebody else is likely to be in the figures."""
CHECK_SEEDS = 500_000
"""Added to the seed of a check, so that it has none of the requests that a value was chosen by."""

Profile = Annotated[str | None, typer.Option(metavar="NAME", help="workstation, team or edge.")]
ModelFile = Annotated[str | None, typer.Option(metavar="FILE", help="GGUF file (model.path).")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting. Repeatable.")]


def tune(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The tuned file.")] = DEFAULT_FILE,
    check: Annotated[bool, typer.Option("--check", help="Measure again whether each value of FILE holds.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be tried, and end.")] = False,
    minutes: Annotated[float, typer.Option(help="When it is over, what was found is written.")] = MINUTES,
    stage: Annotated[str, typer.Option(help="engine, policy or all.")] = "all",
    knob: Annotated[list[str] | None, typer.Option(help="Try this setting only. Repeatable.", metavar="KEY")] = None,
    scenario: Annotated[str, typer.Option(help="The load: a file, or a name in ./scenarios.")] = "mixed",
    target: Annotated[str, typer.Option(help="The figure to improve, as in poise bench compare.")] = DEFAULT_TARGET,
    guard: Annotated[
        list[str] | None, typer.Option(help=f"What must not worsen. Repeatable. Default: {' '.join(DEFAULT_GUARDS)}")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Alternating rounds of a comparison, 5 at least.")] = ROUNDS,
    round_s: Annotated[float, typer.Option(help="Longest load of a round, in seconds.")] = ROUND_S,
    seed: Annotated[int, typer.Option(help="Arrivals and lengths of all rounds follow from it.")] = 1,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="The untuned settings. Repeatable.")
    ] = None,
    profile: Profile = None,
    model: ModelFile = None,
    assignments: Assignments = None,
) -> int:
    """Find better settings for this host, by measuring one change at a time, and write them with the evidence."""
    with refusing(COMMAND):
        loaded = load(config, os.environ, {"profile": profile, "model.path": model}, assignments)
        check_range("--minutes", minutes, 0.1, 10_000)
        check_range("--rounds", rounds, ROUNDS_MIN, 100)
        check_range("--round-s", round_s, 1, 3600)
        check_range("--seed", seed, 0, 1 << 30)
        if stage not in ("all", *STAGES):
            raise InputError(f"--stage {stage}: expected engine, policy or all")
        beside = evidence_path(file)  # a file that somebody else wrote has none
        then = read_evidence(beside) if check and beside.exists() else None
        if then is not None and target == DEFAULT_TARGET and guard is None:
            target, guard = str(then.setup["target"]), list(then.setup["guards"])
        goal = parse_goal(target, DEFAULT_GUARDS if guard is None else guard)
        setup = then.setup if then is not None else {}
        (source,) = read_sources([str(setup.get("scenario_path", scenario))], None, [])
        source = replace(source, scenario=shortened(source.scenario, float(setup.get("round_s", round_s))))
        provenance = describe(loaded.settings)
        run = _Run(file, loaded, goal, source, provenance, rounds, seed)
        if check:
            return run.check(then)
        found = selected(knobs(loaded, usable_threads()), stage, knob or [])
        if not plan:
            check_writable("FILE", file)
        return run.tune(found, minutes, plan_only=plan)


@contextmanager
def refusing(command: str) -> Iterator[None]:
    """What cannot be used or measured ends the command, with a line for each reason."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems[:-1]:
            typer.echo(problem, err=True)
        raise failure_line(error.problems[-1], command=command) from error
    except (CannotMeasure, TargetError, ModelError, EngineLibraryError, ValueError, OSError) as error:
        raise failure_line(str(error), command=command) from error
    except KeyboardInterrupt as error:  # before there was anything to write
        raise typer.Exit(INTERRUPTED) from error


@dataclass(frozen=True, slots=True)
class _Run:
    """What tuning and checking need alike."""

    file: Path
    loaded: LoadedSettings
    goal: Goal
    source: ScenarioSource
    provenance: dict[str, Any]
    rounds: int
    seed: int

    def tune(self, found: list[Knob], minutes: float, *, plan_only: bool) -> int:
        setup = {
            "scenario": self.source.scenario.name,
            "scenario_path": self.source.path,
            "round_s": self.source.scenario.duration_s,
            "rounds": self.rounds,
            "seed": self.seed,
            "minutes": minutes,
            "target": self.goal.name,
            "guards": [guard.text for guard in self.goal.guards],
        }
        with terminable(), self._measures() as measures:
            typer.echo(plan_text(found, measures, 60 * minutes, _header(setup, self.loaded)))
            if plan_only:
                return 0
            typer.echo("")
            tuner = Tuner(measures, self.goal, time.monotonic, time.monotonic() + 60 * minutes, self.seed, typer.echo)
            try:
                tuner.run(found)
            finally:
                found_so_far = (tuner.ended, tuner.trials, tuner.accepted, tuner.verification)
                evidence = Evidence(self.provenance, setup, FORMAT, *found_so_far)
                tunedfile.write(self.file, evidence)
        typer.echo(_conclusion(self.file, evidence))
        return INTERRUPTED if evidence.ended == "interrupted" else 0

    def check(self, then: Evidence | None) -> int:
        values = tunedfile.read_values(self.file)
        if unknown := unknown_keys(values):
            raise InputError(f"{self.file}: {unknown[0]} is no setting that is tuned: nothing here can check it")
        if not values:
            typer.echo(f"{self.file} sets nothing: there is nothing to check")
            return HOLDS
        self.loaded.varied(values)
        for line in differences(then.origin, self.provenance) if then is not None else []:
            typer.echo(f"changed since: {line}")
        try:
            with terminable(), self._measures() as measures:
                done = check_values(values, measures, self.goal, self.seed + CHECK_SEEDS, time.monotonic, typer.echo)
        except KeyboardInterrupt:
            typer.echo(f"{COMMAND}: interrupted", err=True)
            return INTERRUPTED
        n_lost = sum(trial.result != "kept" for trial in done)
        typer.echo(f"{len(done) - n_lost} of {len(done)} values of {self.file} hold")
        return NO_LONGER if n_lost else HOLDS

    def _measures(self) -> AbstractContextManager[HostMeasures]:
        return host_measures(self.loaded, self.source, self.rounds, self.seed, typer.echo)


def _header(setup: dict[str, Any], loaded: LoadedSettings) -> str:
    load = os.getloadavg()[0]
    is_busy = load / len(os.sched_getaffinity(0)) > BUSY
    warning = f"\nThis host is busy now (load average {load:.1f}): what is found may not hold."
    return (
        f"Target {setup['target']} under {setup['scenario']}, {setup['rounds']} rounds of {setup['round_s']:g} s; "
        f"guardrails {', '.join(setup['guards']) or 'none'}; profile {loaded.settings.profile}, seed {setup['seed']}.\n"
        f"End other busy programs: they are in every figure.{warning if is_busy else ''}"
    )


def _conclusion(file: Path, evidence: Evidence) -> str:
    where = f"{file}, every trial in {evidence_path(file)}"
    if evidence.verified:
        return f"{len(evidence.accepted)} value(s) verified: {where}\nserve with: poise serve --config {file}"
    if evidence.accepted:
        return f"Nothing is set: what was kept is not confirmed and stands as comments in {where}"
    return f"Nothing was found to be better beyond noise ({evidence.ended}): {where}"
