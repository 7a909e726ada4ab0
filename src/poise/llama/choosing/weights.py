"""Which file is really loaded: the source, or the same model in the weight format that this CPU computes fastest.

`model.weights = "auto"` decides once for each model, host and llama.cpp version, at the first start. Each format is made
(`requantise`) and timed against the source (`pace`). Of those that are fast enough the fastest is held against the source on a
text (`quality`), and if it fails, the next: no time goes into judging what would not be taken. One for which there is no room
on the disk or in memory is passed over. The decision is kept with its figures; where nothing was taken and time or room was
missing, the next starts try again, SLOW_STARTS in all. Where there was room for none, nothing is kept.

Whatever goes wrong here, the source is served."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from poise.config import Settings
from poise.config.paths import cache_dir
from poise.engine.ports import RunnerError
from poise.llama.binding import library
from poise.llama.binding.library import EngineLibraryError
from poise.llama.binding.model import Model
from poise.llama.choosing.measure import cpu_name, library_versions
from poise.llama.choosing.pace import GAIN_MIN, Pace, compare_pace
from poise.llama.choosing.quality import Quality, TooSlow, compare, quality_text
from poise.llama.choosing.requantise import CannotMake, WeightsFolder, remove
from poise.llama.files.cachefile import file_digest, known_digest, read_entries, write_entry
from poise.llama.files.cgroups import cpu_quotas, usable_threads
from poise.llama.files.formats import FORMATS, WeightFormat, candidates, not_applicable
from poise.llama.files.gguf import GgufHeader, ModelError, read_header
from poise.llama.files.memory import available_bytes

log = logging.getLogger(__name__)

AS_IS = "as-is"
SLOW_STARTS = 3
"""After so many starts without the time or the room to decide it is decided that the file stays as it is."""
TIMED = 0.5
"""Share of the whole that making and timing the formats takes; judging them takes the rest."""
TRIAL_BYTES = 256 << 20
"""What two small contexts and their logits take at most, beside the weights of both models."""
_FORMATS = {known.name: known for known in FORMATS}
_LIMITS = ("perplexity_max", "kl_max", "check_s", "alone_min")

Progress = Callable[[float], None]


class Trial(msgspec.Struct, frozen=True):
    """What was found about one format. `problem` is why it is not taken; empty if nothing speaks against it."""

    name: str
    problem: str
    quality: Quality | None = None
    pace: Pace | None = None
    n_bytes: int = 0
    slow: bool = False
    """There was not enough time to check it: this says more about the host at that moment than about the format."""

    @property
    def gain(self) -> float:
        return self.pace.gain if self.pace else 0.0


class Decision(msgspec.Struct, frozen=True):
    """The chosen format, or AS_IS, with the reason in a sentence and all figures."""

    name: str
    reason: str
    trials: list[Trial] = []
    n_slow: int = 0
    """Starts that have tried, where nothing was taken and time or room was missing."""

    @property
    def is_settled(self) -> bool:
        """False: the next start tries again. A host that is always too slow is not to try at every start for ever."""
        return not 0 < self.n_slow < SLOW_STARTS

    @property
    def wanted(self) -> WeightFormat | None:
        return _FORMATS.get(self.name)


@dataclass(frozen=True, slots=True)
class Weights:
    """The file to load, and why. `decision` is None where none was made: nothing to decide yet, or something is in the way."""

    path: Path
    name: str
    reason: str
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Chooser:
    """Decides about one source with the given settings. `fits` tells whether a file fits into memory with all of them."""

    source: Path
    settings: Settings
    fits: Callable[[Path], bool]
    progress: Progress = lambda _: None
    room: Callable[[], int] = available_bytes
    quotas: Callable[[], Iterable[object]] = cpu_quotas
    folder: WeightsFolder = field(default_factory=WeightsFolder)
    decisions: Path = field(default_factory=lambda: cache_dir() / "weights.json")

    def planned(self) -> Weights:
        """What the next start loads, as far as it is decided. Reads headers only; raises ModelError for a bad source."""
        header = read_header(self.source)
        if hindrance := self._hindrance(header):
            return self._as_is(hindrance)
        try:
            digest = known_digest(self.source)
            decision = self._remembered(digest) if digest else None
            if digest is None or decision is None or not decision.is_settled:
                return self._as_is("not decided yet: the next start does it")
            return self._decided(digest, decision) or self._as_is("its file is to be made again by the next start")
        except (OSError, EngineLibraryError) as error:
            return self._as_is(_one_line(error))

    def choose(self) -> Weights:
        """The file to load now; decides and makes it if that was not done before."""
        planned = self.planned()
        if planned.decision is not None or self._hindrance(read_header(self.source)):
            return planned
        return self._locked(self._choose)

    def as_before(self, name: str) -> Weights:
        """The weights that an engine of this server had, for the one in its place: the answers that wait go on with the same."""
        wanted = _FORMATS.get(name)
        return self._locked(lambda digest: self._again(digest, wanted)) if wanted is not None else self._as_is("as before")

    def _locked(self, work: Callable[[str], Weights]) -> Weights:
        """What is done with the source's digest while nobody else makes files; the source, where that fails."""
        try:
            digest = file_digest(self.source)
            with self.folder.locked(waiting=lambda: self.progress(0.0)):
                return work(digest)
        except (CannotMake, ModelError, RunnerError, OSError, EngineLibraryError) as error:
            log.warning("%s is served as it is: %s", self.source, _one_line(error))
            return self._as_is(_one_line(error))

    def _again(self, digest: str, wanted: WeightFormat) -> Weights:
        path, decision = self._made(digest, wanted), self._remembered(digest)
        if not self.fits(path):
            return self._as_is(f"{wanted.name} does not fit into memory now")
        return Weights(path, wanted.name, decision.reason if decision is not None else "as before", decision)

    def forget(self) -> None:
        """Drop the decision, so that the next start makes it again."""
        if digest := known_digest(self.source):
            write_entry(self.decisions, self._key(digest), None)

    def _choose(self, digest: str) -> Weights:
        """With the lock held: somebody else may have decided meanwhile."""
        decision = self._remembered(digest)
        if decision is None or not decision.is_settled:
            decision = self._decide(digest, decision.n_slow if decision is not None else 0)
            write_entry(self.decisions, self._key(digest), msgspec.to_builtins(decision))
        path = self._made(digest, decision.wanted) if decision.wanted is not None else None
        weights = self._decided(digest, decision)
        if weights is None:
            raise CannotMake("the file that was made cannot be read back")
        self.folder.prune(digest, keep=path)
        log.info("weights of %s: %s (%s)", self.source, weights.name, weights.reason)
        return weights

    def _decide(self, digest: str, n_slow: int) -> Decision:
        formats = candidates(read_header(self.source), library.load().print_system_info().decode())
        trials: dict[str, Trial] = {}
        hindrances: list[CannotMake] = []
        best: Trial | None = None
        deadline = time.perf_counter() + self.settings.model.weights_check_s
        try:
            with Model.load(self.source) as source:
                for i, wanted in enumerate(formats):
                    self.progress(TIMED * i / len(formats))
                    try:
                        trials[wanted.name] = self._time(source, digest, wanted, deadline)
                    except CannotMake as hindrance:
                        hindrances.append(hindrance)
                        trials[wanted.name] = Trial(wanted.name, _one_line(hindrance))
                best = self._judge(source, digest, trials, deadline)
        finally:
            for wanted in formats:
                if best is None or wanted.name != best.name:
                    remove(self.folder.path(self.source, digest, wanted))
        if len(hindrances) == len(formats):
            raise hindrances[0]
        if best is None:
            problems = "; ".join(f"{trial.name}: {trial.problem}" for trial in trials.values())
            was_busy = any(trial.slow for trial in trials.values()) and not any(
                self.quotas()
            )  # a quota is no larger at the next start
            is_open = bool(hindrances) or was_busy
            return Decision(AS_IS, problems, list(trials.values()), n_slow + 1 if is_open else 0)
        assert best.quality is not None, best
        reason = f"KL divergence {best.quality.kl:.4f} from the file's, and faster here: {best.pace}"
        return Decision(best.name, reason, list(trials.values()))

    def _time(self, source: Model, digest: str, wanted: WeightFormat, deadline: float) -> Trial:
        """Make one format and measure its pace. Raises CannotMake where the disk or memory is in the way."""
        path = self._made(digest, wanted)
        if not self.fits(path):
            raise CannotMake(f"{wanted.name} does not fit into memory with these settings")
        if self.room() < read_header(path).tensor_bytes + TRIAL_BYTES:
            raise CannotMake(f"memory does not hold the source and {wanted.name} at once, to compare them")
        with Model.load(path) as candidate:
            pace = compare_pace(source, candidate, threads=self._threads, limit_s=deadline - time.perf_counter())
            problem = pace.problem(self.settings.model.weights_alone_min)
            return Trial(wanted.name, problem, pace=pace, n_bytes=candidate.size_bytes)

    def _judge(self, source: Model, digest: str, trials: dict[str, Trial], deadline: float) -> Trial | None:
        """The fastest that is as good as the source; what is found goes into `trials`. One for which time is short ends it: the
        others would read the same text."""
        limits = self.settings.model
        while left := [trial for trial in trials.values() if not trial.problem]:
            best = left[0]
            for trial in left[1:]:
                if self._is_faster(digest, trial, best):
                    best = trial
            done = 1 - (1 - TIMED) * len(left) / len(trials)
            with Model.load(self.folder.path(self.source, digest, _FORMATS[best.name])) as candidate:
                try:
                    part = self._part(done, (1 - TIMED) / len(trials))
                    left_s = deadline - time.perf_counter()
                    quality = compare(source, candidate, self._threads, limits.weights_kl_max, left_s, part)
                except TooSlow as slow:
                    took = (
                        f"checking it would take {slow.args[0]:.0f} s more, longer than there is time for (model.weights_check_s)"
                    )
                    trials[best.name] = msgspec.structs.replace(best, problem=took, slow=True)
                    return None
            problem = quality.problem(limits.weights_perplexity_max, limits.weights_kl_max)
            trials[best.name] = msgspec.structs.replace(best, problem=problem, quality=quality)
            if not problem:
                return trials[best.name]
        return None

    def _made(self, digest: str, wanted: WeightFormat) -> Path:
        """The file in a format, made where it is not there; the lock is held. Raises CannotMake."""
        path = self.folder.path(self.source, digest, wanted)
        if not self.folder.find(path):
            self.folder.make(read_header(self.source), path, wanted, self._threads)
        return path

    def _is_faster(self, digest: str, trial: Trial, other: Trial) -> bool:
        """Gains that hardly differ were measured at different times: then the two formats are timed against each other."""
        clear = not 1 / GAIN_MIN < trial.gain / other.gain < GAIN_MIN
        if clear or self.room() < trial.n_bytes + other.n_bytes + TRIAL_BYTES:
            return trial.gain > other.gain
        paths = [self.folder.path(self.source, digest, _FORMATS[one.name]) for one in (other, trial)]
        with Model.load(paths[0]) as first, Model.load(paths[1]) as second:
            return compare_pace(first, second, threads=self._threads).gain > 1

    def _part(self, start: float, share: float) -> Progress:
        return lambda done: self.progress(start + share * done)

    def _hindrance(self, header: GgufHeader) -> str:
        """Why nothing is to be decided: by the settings, or by what the file is."""
        if self.settings.model.weights == AS_IS:
            return 'model.weights is "as-is"'
        return not_applicable(header, self.settings.engine.gpu_layers)

    def _decided(self, digest: str, decision: Decision) -> Weights | None:
        """What a decision comes to now; None if its file has to be made first."""
        if (wanted := decision.wanted) is None:
            return Weights(self.source, AS_IS, decision.reason, decision)
        path = self.folder.path(self.source, digest, wanted)
        if not self.folder.find(path):
            return None
        if not self.fits(path):
            return Weights(self.source, AS_IS, f"{wanted.name} does not fit into memory now", decision)
        return Weights(path, wanted.name, decision.reason, decision)

    def _remembered(self, digest: str) -> Decision | None:
        try:
            decision = msgspec.convert(read_entries(self.decisions).get(self._key(digest)), Decision)
        except msgspec.ValidationError:
            return None
        return decision if decision.name == AS_IS or decision.wanted else None

    def _key(self, digest: str) -> str:
        """Everything that a decision depends on."""
        limits = self.settings.model
        parts = {
            "source": digest,
            "cpu": [cpu_name(), self._threads],
            "library": library_versions(library.load()),
            "text": hashlib.sha256(quality_text().encode()).hexdigest(),
            "formats": [str(known) for known in FORMATS],
            "limits": [*(getattr(limits, f"weights_{name}") for name in _LIMITS), GAIN_MIN],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def _threads(self) -> int:
        return self.settings.engine.threads or usable_threads()

    def _as_is(self, reason: str) -> Weights:
        return Weights(self.source, AS_IS, reason)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def to_text(source: Path, weights: Weights) -> str:
    """What is served and why, with the figures of each format."""
    lines = [f"{source}", "", f"  served: {weights.name}", f"  because: {weights.reason}"]
    if weights.path != source:
        lines.append(f"  file: {weights.path}")
    for trial in weights.decision.trials if weights.decision else []:
        lines += ["", f"  {trial.name} ({trial.n_bytes / 1e6:.0f} MB)"]
        if (q := trial.quality) is not None:
            ratio = f"x{q.perplexity_ratio:.4f} (± {q.error:.4f})"
            same = f"same likeliest token {q.same_top:.1%}, {q.n_positions} positions"
            lines.append(f"    perplexity {q.perplexity:.3f}, the source's {q.source_perplexity:.3f}: {ratio}")
            lines.append(f"    KL divergence {q.kl:.4f}, {same}")
        if trial.pace is not None:
            lines.append(f"    {trial.pace}")
        lines.append(f"    {'not taken: ' + trial.problem if trial.problem else 'passed'}")
    return "\n".join(lines)


def to_json(source: Path, weights: Weights) -> str:
    """The same for programs."""
    document = {"source": str(source), "file": str(weights.path), "served": weights.name, "reason": weights.reason}
    trials = weights.decision.trials if weights.decision else []
    return json.dumps(document | {"trials": msgspec.to_builtins(trials)}, indent=2)
