"""The tuned file: settings that `poise serve --config FILE` takes as they are, each under the evidence for it.

Only what the verification confirmed is set. What was kept by a trial but not confirmed stands there as a comment, with its
evidence. Beside the file lies a JSON file of the same name with every trial (`poise_lab.tune.evidence`). A file that was there
before is kept as FILE.bak."""

import os
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

from poise.config.catalogue import quoted
from poise.config.loader import flatten
from poise.llama.files.cachefile import write_text
from poise_lab.scenarios.files import explained
from poise_lab.tune.evidence import Evidence, Trial
from poise_lab.tune.knobs import Changes

WIDTH = 120
DEFAULT_FILE = Path("poise.tuned.toml")
_NOT_CONFIRMED = {
    "complete": "The verification did not confirm it: nothing is set.",
    "time": "The time was over before it could be verified: nothing is set.",
    "interrupted": "Interrupted before it could be verified: nothing is set.",
}


def evidence_path(path: Path) -> Path:
    return path.with_suffix(".json")


def write(path: Path, evidence: Evidence) -> None:
    """Both files, each in one go; earlier ones are kept beside them. Raises OSError."""
    for target, text in ((path, to_toml(evidence)), (evidence_path(path), evidence.encoded())):
        if target.exists():
            os.replace(target, target.with_name(target.name + ".bak"))
        write_text(target, text)


def read_values(path: Path) -> Changes:
    """What a tuned file sets, by dotted key. Raises InputError."""
    with explained(path):
        return dict(flatten(tomllib.loads(path.read_text(encoding="utf-8"))))


def to_toml(evidence: Evidence) -> str:
    """The file's text."""
    lines = [line for text in _head(evidence) for line in _comment(text)]
    if not evidence.accepted:
        lines += _comment("Nothing was found to be better beyond noise; the settings that are in force stay.")
    for section in dict.fromkeys(key.rpartition(".")[0] for key in evidence.accepted):
        lines += ["", f"[{section}]" if evidence.verified else f"# [{section}]"]
        for key in [key for key in evidence.accepted if key.rpartition(".")[0] == section]:
            trial = evidence.trial(key)
            lines += [line for text in _evidence(trial) for line in _comment(text)]
            setting = f"{key.rpartition('.')[2]} = {quoted(trial.after)}"
            lines.append(setting if evidence.verified else f"# {setting}")
    return "\n".join(lines) + "\n"


def _head(evidence: Evidence) -> Iterator[str]:
    provenance, setup = evidence.origin, evidence.setup
    host, model = provenance["host"], provenance["model"]
    yield "Written by poise tune. It goes over your own file: poise serve --config poise.toml --config THIS"
    yield f"{provenance['started_at']}, poise {provenance['versions']['poise']}, commit {provenance['commit'] or '-'}"
    yield f"host: {host['cpu']}, {host['n_cpus_usable']} cores; llama.cpp {provenance['versions']['llama.cpp']}"
    yield f"model: {model['path']}, SHA-256 {model['sha256']}"
    yield (
        f"load: scenario {setup['scenario']}, {setup['rounds']} rounds of {setup['round_s']:g} s; target {setup['target']}; "
        f"guardrails {', '.join(setup['guards']) or 'none'}"
    )
    if evidence.accepted:
        if evidence.verification is not None:
            yield "verification, untuned against all values together:"
            yield from _evidence(evidence.verification)
        if not evidence.verified:
            yield _NOT_CONFIRMED["complete" if evidence.verification is not None else evidence.ended]


def _evidence(trial: Trial) -> Iterator[str]:
    """Ratio, interval, rounds and seeds, then the guardrails."""
    change = f"{quoted(trial.before)} -> {quoted(trial.after)}, " if trial.key else ""
    n_rounds = trial.target.n_pairs if trial.target is not None else 0
    seeds = f", seeds {trial.seeds[0]} to {trial.seeds[-1]}" if trial.seeds else ""
    judge = {"passes": "forward passes", "live": "live servers", "simulator": "the simulator"}[trial.method]
    yield f"{change}judged by {judge} in {n_rounds} alternating rounds{seeds}: {trial.reason}"
    for guard in trial.guards:
        yield f"  {guard}"


def _comment(text: str) -> list[str]:
    """Whatever is in the text, it stays behind the sign."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    indent = " " * (len(clean) - len(clean.lstrip()))
    lines = textwrap.wrap(clean.strip(), WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"# {indent}{line}" for line in lines]
