"""How many threads compute: fewer while other programs keep the cores busy.

llama.cpp's threads meet at a barrier after every node of the graph, hundreds of times a pass. On a host of one's own that is
cheap. Beside other busy processes one of them is always waiting for its turn on a core, and all others wait for it: measured
here with two cores and a load of five, two threads gave 5 tokens a second and one gave 31. So passes that take much longer
than they should are a reason to try fewer threads, and when fewer are in use, more are tried now and then."""

from dataclasses import dataclass, field
from statistics import median

MEMORY = 0.8
"""Weight of the past in the mean slowness, at each pass."""
SUSPICION = 2.5
"""A mean slowness above this many times the best one known is worth a trial of fewer threads."""
GAIN_DOWN = 0.6
"""Fewer threads are kept when a pass takes less than this share of what it takes with the present ones: beside busy programs
it is a third or less, and nothing else is worth giving up a core for."""
GAIN_UP = 0.95
"""More threads are kept when they gain anything at all."""
TRIAL_PAIRS = 4
TRIAL_ABORT = 2.0
"""A trial ends at once when its first pass is this many times slower than the mean of the level it would replace."""
WAIT_FIRST_NS = 1_000_000_000
WAIT_MAX_NS = 16_000_000_000
BEST_FORGETTING = 1.0005
"""What the best known slowness grows by at each pass, so that an old stroke of luck is forgotten."""


@dataclass(slots=True)
class _Trial:
    """Passes with the other number of threads and with the present one, in turns: neighbouring passes are alike."""

    level: int
    tried: list[float] = field(default_factory=list)
    home: list[float] = field(default_factory=list)

    @property
    def is_home(self) -> bool:
        return len(self.home) < len(self.tried)

    def share(self) -> float:
        """What a pass of the trial takes of the one after it, in the median of the pairs."""
        return median(tried / max(1e-9, home) for tried, home in zip(self.tried, self.home, strict=True))


class ThreadGovernor:
    """Levels of `most`, `most`/2, ... 1 threads. `threads` is what the next pass should use."""

    def __init__(self, most: int) -> None:
        assert most >= 1, f"{most} threads"
        self._levels = [most]
        while self._levels[-1] > 1:
            self._levels.append(self._levels[-1] // 2)
        self._home = 0
        self._mean: float | None = None
        self._best: float | None = None
        self._known = 0
        """The lowest level that has been tried."""
        self._trial: _Trial | None = None
        self._fewer_next = True
        self._wait_ns = WAIT_FIRST_NS
        self._next_trial_ns = 0
        self.n_changes = 0

    @property
    def threads(self) -> int:
        trial = self._trial
        return self._levels[self._home if trial is None or trial.is_home else trial.level]

    def observe(self, slowness: float, now_ns: int) -> None:
        """A pass was made with `threads`; `slowness` is its time over what such a pass is expected to take."""
        if len(self._levels) == 1:
            return
        if self._trial is not None and not self._trial.is_home:
            self._trial.tried.append(slowness)
            if len(self._trial.tried) == 1 and self._mean is not None and slowness > TRIAL_ABORT * self._mean:
                self._end(now_ns, changed=False)
            return
        self._mean = slowness if self._mean is None else MEMORY * self._mean + (1 - MEMORY) * slowness
        if self._home == 0:
            self._best = self._mean if self._best is None else min(self._mean, self._best * BEST_FORGETTING)
        if self._trial is not None:
            self._trial.home.append(slowness)
            if len(self._trial.home) == TRIAL_PAIRS:
                self._judge(self._trial, now_ns)
        elif now_ns >= self._next_trial_ns:
            self._begin()

    def _begin(self) -> None:
        """Try more threads if fewer are in use; fewer if passes take suspiciously long, and once at the start; in turns."""
        lowest = self._home == len(self._levels) - 1
        unknown = self._known == self._home
        suspicious = self._best is not None and self._mean is not None and self._mean > SUSPICION * self._best
        fewer = not lowest and (unknown or suspicious)
        if self._home > 0 and not (fewer and self._fewer_next):
            self._trial = _Trial(self._home - 1)
            self._fewer_next = True
        elif fewer:
            self._trial = _Trial(self._home + 1)
            self._known = max(self._known, self._home + 1)
            self._fewer_next = False

    def _judge(self, trial: _Trial, now_ns: int) -> None:
        gain = GAIN_UP if trial.level < self._home else GAIN_DOWN
        if better := trial.share() < gain:
            self._home = trial.level
            self._mean = trial.tried[-1]
            self.n_changes += 1
        self._end(now_ns, changed=better)

    def _end(self, now_ns: int, *, changed: bool) -> None:
        self._trial = None
        self._wait_ns = WAIT_FIRST_NS if changed else min(2 * self._wait_ns, WAIT_MAX_NS)
        self._next_trial_ns = now_ns + self._wait_ns
