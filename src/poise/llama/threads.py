"""How many threads compute: fewer while other programs keep the cores busy.

llama.cpp's threads meet at a barrier after every node of the graph, hundreds of times a pass. On a host of one's own that is
cheap. Beside other busy processes one of them is always waiting for its turn on a core, and all others wait for it: measured
here with two cores and a load of five, two threads gave 5 tokens a second and one gave 31. So passes that take much longer
than they should are a reason to try fewer threads, and when fewer are in use, more are tried now and then.
"""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 0.7
"""Weight of the past in a level's mean slowness, at each pass."""
SUSPICION = 1.8
"""A mean slowness above this many times the best one known is worth a trial of fewer threads."""
GAIN = 0.85
"""Another level is kept when its slowness is below this share of the present one's."""
TRIAL_PASSES = 3
TRIAL_ABORT = 2.0
"""A trial ends at once when a pass is this many times slower than the level it would replace."""
WAIT_FIRST_NS = 1_000_000_000
WAIT_MAX_NS = 16_000_000_000
BEST_FORGETTING = 1.0005
"""What the best known slowness grows by at each pass, so that an old stroke of luck is forgotten."""


@dataclass(slots=True)
class _Trial:
    level: int
    passes: int = 0


class ThreadGovernor:
    """Levels of `most`, `most`/2, ... 1 threads. `threads` is what the next pass should use."""

    def __init__(self, most: int) -> None:
        assert most >= 1, f"{most} threads"
        self._levels = [most]
        while self._levels[-1] > 1:
            self._levels.append(self._levels[-1] // 2)
        self._mean: list[float | None] = [None] * len(self._levels)
        self._best: float | None = None
        self._home = 0
        self._trial: _Trial | None = None
        self._wait_ns = WAIT_FIRST_NS
        self._next_trial_ns = 0
        self._fewer_next = True
        self.n_changes = 0

    @property
    def threads(self) -> int:
        return self._levels[self._trial.level if self._trial else self._home]

    def observe(self, slowness: float, now_ns: int) -> None:
        """A pass was made with `threads`; `slowness` is its time over what such a pass is expected to take."""
        if len(self._levels) == 1:
            return
        level = self._trial.level if self._trial else self._home
        mean = self._mean[level]
        fresh = mean is None or (self._trial is not None and self._trial.passes == 0)
        self._mean[level] = slowness if fresh or mean is None else MEMORY * mean + (1 - MEMORY) * slowness
        if self._trial is not None:
            self._judge(self._trial, slowness, now_ns)
        else:
            if self._home == 0:
                self._remember(self._mean[0] or slowness)
            if now_ns >= self._next_trial_ns:
                self._begin(now_ns)

    def _remember(self, mean: float) -> None:
        self._best = mean if self._best is None else min(mean, self._best * BEST_FORGETTING)

    def _begin(self, now_ns: int) -> None:
        """Try more threads if fewer are in use; fewer if passes take suspiciously long, and once at the start; in turns."""
        home_mean = self._mean[self._home]
        lowest = self._home == len(self._levels) - 1
        unknown = not lowest and self._mean[self._home + 1] is None
        suspicious = self._best is not None and home_mean is not None and home_mean > SUSPICION * self._best
        fewer = not lowest and (unknown or suspicious)
        if self._home > 0 and not (fewer and self._fewer_next):
            self._trial = _Trial(self._home - 1)
            self._fewer_next = True
        elif fewer:
            self._trial = _Trial(self._home + 1)
            self._fewer_next = False

    def _judge(self, trial: _Trial, slowness: float, now_ns: int) -> None:
        trial.passes += 1
        home, tried = self._mean[self._home], self._mean[trial.level]
        assert home is not None, "a trial before the first pass"
        assert tried is not None, "a trial without a pass"
        hopeless = slowness > TRIAL_ABORT * home
        if trial.passes < TRIAL_PASSES and not hopeless:
            return
        self._trial = None
        if not hopeless and tried < GAIN * home:
            self._home = trial.level
            self._wait_ns = WAIT_FIRST_NS
            self.n_changes += 1
        else:
            self._wait_ns = min(2 * self._wait_ns, WAIT_MAX_NS)
        self._next_trial_ns = now_ns + self._wait_ns
