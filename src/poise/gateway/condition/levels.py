"""The server's level, and why: a state machine on facts and times that are passed in.

From the calmest: normal, busy, constrained, degraded, draining. The highest that applies is the level that is shown.

1. busy: a class's queue is `busy_queue_share` full (see `crowding`), or interactive requests of several accounts wait, and one
   more would wait `busy_wait_s`.
2. constrained: a class's queue is `constrained_queue_share` full, less than `memory_low_mb` are free, or the engine's resident
   memory is above `rss_max_mb`.
3. A condition begins at once. It is over when its figure has been beyond the limit by a margin (half of a queue's or a wait's
   limit, a quarter more free memory, a twentieth less resident memory) for `calm_s` without a break. A figure that is not
   known, because there is no engine, neither begins nor ends anything.
4. degraded: `crashes_max` crashes or hangs within `crash_window_s`. It is over after `recover_s` without one, at a moment without
   live requests, because the engine is replaced then. Until then `recovers` says so.
5. draining: the server was asked to stop. It is never over."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poise.config import LevelsSettings
from poise.scheduler.request import RequestClass

_QUEUE_MARGIN = 0.5
_MEMORY_MARGIN = 1.25
_RSS_MARGIN = 0.95
MIB = 1 << 20
INTERACTIVE, BACKGROUND = RequestClass.INTERACTIVE.value, RequestClass.BACKGROUND.value


class Level(StrEnum):
    NORMAL = "normal"
    BUSY = "busy"
    CONSTRAINED = "constrained"
    DEGRADED = "degraded"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class LevelInputs:
    """What a level is judged by. None: not known. `queued` is by class."""

    queued: Mapping[str, int] = field(default_factory=dict)
    wait_s: float | None = None
    """Estimated wait of an interactive request."""
    free_bytes: int | None = None
    rss_bytes: int | None = None
    n_live: int = 0


@dataclass(slots=True)
class _Condition:
    """One figure against its limits. `enter` begins it, `leave` must be passed to end it; `below`: too little is what is bad."""

    name: str
    level: Level
    enter: float
    leave: float
    below: bool = False
    active: bool = False
    value: float = 0.0
    calm_since_s: float | None = None

    def look(self, now_s: float, value: float | None, calm_s: float) -> None:
        if value is None:
            return
        self.value = value
        bad = value < self.enter if self.below else value >= self.enter
        good = value >= self.leave if self.below else value < self.leave
        if bad:
            self.active = True
        if not good:
            self.calm_since_s = None
        elif self.calm_since_s is None:
            self.calm_since_s = now_s
        if self.active and self.calm_since_s is not None and now_s - self.calm_since_s >= calm_s:
            self.active = False

    def reason(self) -> str:
        begins, ends = ("below", "at") if self.below else ("at", "below")
        return f"{self.name} {self.value:g} (begins {begins} {self.enter:g}, ends {ends} {self.leave:g})"


def crowding(queued: Mapping[str, int], most: int) -> int:
    """How full a queue of `most` places is, from how many each account has there: none counts for more than a quarter of them,
    and where a single one waits nobody is held up by others. So what one or two do with their parts of a queue is no reason to
    give everybody less."""
    if len(queued) < 2:
        return 0
    return sum(min(n, max(1, most // 4)) for n in queued.values())


class Levels:
    """`settings` are the limits, `queue_max` is by class."""

    def __init__(self, settings: LevelsSettings, queue_max: Mapping[str, int]) -> None:
        self._settings = settings
        shares = {Level.BUSY: settings.busy_queue_share, Level.CONSTRAINED: settings.constrained_queue_share}
        self._queues = [(name, _queue(name, *of, most)) for name, most in queue_max.items() for of in shares.items()]
        busy_s = settings.busy_wait_s
        self._wait = _Condition("interactive wait in s", Level.BUSY, busy_s, busy_s * _QUEUE_MARGIN)
        low, most_rss = settings.memory_low_mb, settings.rss_max_mb
        self._free = _Condition("free memory in MB", Level.CONSTRAINED, low, low * _MEMORY_MARGIN, below=True)
        self._rss = _Condition("engine memory in MB", Level.CONSTRAINED, most_rss, most_rss * _RSS_MARGIN)
        self._crashes_s: deque[float] = deque()
        self._n_crashes = 0
        """That degraded it."""
        self._draining_s: float | None = None
        self.degraded = False
        self.recovers = False
        """It is time to try the normal configuration."""

    def look(self, now_s: float, inputs: LevelInputs) -> Level:
        """Judge the figures of this moment; returns the level."""
        calm_s = self._settings.calm_s
        for name, condition in self._queues:
            condition.look(now_s, inputs.queued.get(name), calm_s)
        self._wait.look(now_s, inputs.wait_s, calm_s)
        self._free.look(now_s, _mb(inputs.free_bytes), calm_s)
        if self._settings.rss_max_mb:
            self._rss.look(now_s, _mb(inputs.rss_bytes), calm_s)
        quiet = bool(self._crashes_s) and now_s - self._crashes_s[-1] >= self._settings.recover_s
        self.recovers = self.degraded and quiet and inputs.n_live == 0
        return self.level

    def crashed(self, now_s: float) -> bool:
        """An engine was lost that should not have been; returns whether the next one must be started in the fallback."""
        self._note(now_s)
        if len(self._crashes_s) >= self._settings.crashes_max:
            self.degraded = True
            self._n_crashes = len(self._crashes_s)
        return self.degraded

    def too_large(self, now_s: float) -> None:
        """There is no memory for the normal configuration now: the next engine is started in the fallback."""
        self._note(now_s)  # the normal one is tried again after as long a time as after a crash
        self.degraded, self._n_crashes = True, 0

    def _note(self, now_s: float) -> None:
        self._crashes_s.append(now_s)
        while now_s - self._crashes_s[0] > self._settings.crash_window_s:
            self._crashes_s.popleft()

    def recovered(self) -> None:
        """The normal configuration is being tried. What was counted before is forgotten: it takes as many crashes again."""
        self.degraded = self.recovers = False
        self._crashes_s.clear()

    def drain(self, now_s: float) -> None:
        self._draining_s = now_s if self._draining_s is None else self._draining_s

    @property
    def level(self) -> Level:
        """The highest that applies."""
        if self._draining_s is not None:
            return Level.DRAINING
        return Level.DEGRADED if self.degraded else self.load

    @property
    def load(self) -> Level:
        """normal, busy or constrained, whatever else applies."""
        active = {condition.level for condition in self._active()}
        return next((level for level in (Level.CONSTRAINED, Level.BUSY) if level in active), Level.NORMAL)

    @property
    def reasons(self) -> list[str]:
        """Why it is at its level, with the numbers; nothing when it is normal."""
        reasons = ["the server was asked to stop"] if self._draining_s is not None else []
        if self.degraded:
            crashes = f"{self._n_crashes} crashes within {self._settings.crash_window_s:g} s" if self._n_crashes else ""
            reasons.append(crashes or "the normal configuration does not fit the memory that is free")
        return reasons + [condition.reason() for condition in self._active()]

    def _active(self) -> Iterable[_Condition]:
        queues = [condition for _, condition in self._queues]
        return [condition for condition in [*queues, self._wait, self._free, self._rss] if condition.active]


def _queue(name: str, level: Level, share: float, most: int) -> _Condition:
    enter = share * most
    # A queue that is empty is calm, however short it may be.
    return _Condition(f"{name} queue", level, max(1.0, enter), max(1.0, enter * _QUEUE_MARGIN))


def _mb(n_bytes: int | None) -> float | None:
    return None if n_bytes is None else round(n_bytes / MIB)


def background_limit(settings: LevelsSettings, queue_max: int, load: Level) -> int:
    """Background requests that may wait while the server is at this level."""
    if load is Level.CONSTRAINED:
        return 0
    return max(1, int(settings.busy_queue_share * queue_max)) if load is Level.BUSY else queue_max
