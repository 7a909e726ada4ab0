"""What was tried and what came of it, as one JSON document: every trial with its figures, also the refused ones, and where the
figures come from: the host, the versions, and the model that is really served."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from poise.config import Settings
from poise.llama.binding import library
from poise.llama.files.cachefile import file_digest
from poise.llama.files.gguf import ModelError
from poise.llama.fitting.fit import model_path
from poise_lab.bench import provenance
from poise_lab.bench.comparison import Estimate
from poise_lab.scenarios.files import InputError, explained
from poise_lab.tune.knobs import Value

Method = Literal["passes", "simulator", "live"]
Result = Literal["kept", "refused", "promising", "failed", "skipped", "interrupted"]
Ended = Literal["complete", "time", "interrupted"]
FORMAT = 1
_COMPARED = {
    "cpu": ("host", "cpu"),
    "cores": ("host", "n_cpus_usable"),
    "model": ("model", "sha256"),
    "version of poise": ("versions", "poise"),
    "version of llama.cpp": ("versions", "llama.cpp"),
}


class Trial(msgspec.Struct, frozen=True):
    """One comparison: `key` from `before` to `after`, with all that was kept until then. The key "" is the verification."""

    number: int
    key: str
    before: Value
    after: Value
    method: Method
    result: Result
    reason: str
    target: Estimate | None = None
    guards: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    failed: tuple[int, int] = (0, 0)
    took_s: float = 0.0
    estimates: tuple[Estimate, ...] = ()

    def line(self) -> str:
        """As it is printed while tuning goes on."""
        what = f"{self.key} {self.before} -> {self.after}" if self.key else "untuned -> all that was kept, on new seeds"
        return f"{self.number:>3}  {self.method:<9}  {what}: {self.result}: {self.reason}  ({self.took_s:.0f} s)"


class Evidence(msgspec.Struct):
    """Everything about a run of `poise tune`."""

    origin: dict[str, Any]
    """Host, versions, commit, model, started_at."""
    setup: dict[str, Any]
    """Scenario, rounds, target, guardrails, seeds, limits: what the figures depend on."""
    format: int = FORMAT
    ended: Ended = "complete"
    trials: list[Trial] = []
    accepted: dict[str, int] = {}
    """Setting to the number of the trial that decided it."""
    verification: Trial | None = None

    @property
    def verified(self) -> bool:
        return self.verification is not None and self.verification.result == "kept"

    def trial(self, key: str) -> Trial:
        """The one that a value was accepted by."""
        return next(trial for trial in self.trials if trial.number == self.accepted[key])

    def encoded(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"


def read_evidence(path: Path) -> Evidence:
    """Raises InputError."""
    with explained(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=Evidence)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: not the evidence of a poise tune: {error}") from error


def describe(settings: Settings) -> dict[str, Any]:
    """Raises ModelError when there is no such model, and EngineLibraryError."""
    path = model_path(settings)
    try:
        digest = file_digest(path)
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": provenance.host(),
        "versions": provenance.versions() | {"llama.cpp": library.load().version().decode()},
        "commit": provenance.commit(),
        "model": {"path": str(path), "sha256": digest},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when figures were measured, in words."""
    found = []
    for what, (part, name) in _COMPARED.items():
        old, new = (document.get(part, {}).get(name) for document in (before, now))
        if old != new:
            found.append(f"{what}: measured with {old}, now {new}")
    return found
