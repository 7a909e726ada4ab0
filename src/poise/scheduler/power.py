"""What the server's power, heat and quota leave to be used: whole numbers, given from outside, and the pauses that follow.

A duty of d millionths means: over any time, steps take no more than that part of it. Time that passes earns the part, a step
spends what it took, and nothing is planned while there are debts: the empty plans' `wake_at_ns` is when they are paid. Little is
saved up, so that the pauses stay short and come between steps, where a token's reader sees an even pace."""

from dataclasses import dataclass
from enum import StrEnum

FULL_PPM = 1_000_000
SAVED_NS = 20_000_000
"""Compute that may be saved up: what waking up a little late would cost."""


class Background(StrEnum):
    """What is done with background work: it is computed, stands still where it is, or leaves its slots as well."""

    RUN = "run"
    PAUSE = "pause"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """What may be used. `row_limit`: requests of the first class that run at once, and step_us: of a step's time; 0: no limit.
    `store_ppm`: part of the host store's budget."""

    duty_ppm: int = FULL_PPM
    row_limit: int = 0
    background: Background = Background.RUN
    step_us: int = 0
    store_ppm: int = FULL_PPM

    def __post_init__(self) -> None:
        assert 0 < self.duty_ppm <= FULL_PPM, f"a duty of {self.duty_ppm}"
        assert 0 <= self.store_ppm <= FULL_PPM, f"{self.store_ppm} of the store"
        assert self.row_limit >= 0, f"{self.row_limit} rows"
        assert self.step_us >= 0, f"steps of {self.step_us} us"

    def target_us(self, target_us: int) -> int:
        """A step's time budget, so that with the pause after it there is a token in the time that there should be."""
        target_us = max(1, target_us * self.duty_ppm // FULL_PPM)
        return min(target_us, self.step_us) if self.step_us else target_us

    def rows(self, itl_us: int, fixed_us: float, decode_us: float) -> int:
        """Interactive requests that may run at once; 0: no limit. Where rows take turns, so many that each has its token in time,
        with a step for a prompt in between; at least one."""
        if not self.step_us:
            return self.row_limit
        row_us = decode_us + fixed_us / max(1, (self.step_us - fixed_us) // max(1.0, decode_us))
        most = max(1, int((itl_us * self.duty_ppm / FULL_PPM - self.step_us) / max(1.0, row_us)))
        return min(most, self.row_limit or most)

    def stretched(self, duration_us: int) -> int:
        """How long it takes to compute for so long."""
        return duration_us * FULL_PPM // self.duty_ppm


NO_LIMITS = PowerLimits()


@dataclass(slots=True)
class Duty:
    """The account of computed time: in millionths of a nanosecond, so that nothing is rounded away."""

    _credit: int = 0
    _at_ns: int | None = None
    _began_ns: int = 0

    def resumes_at(self, duty_ppm: int, now_ns: int) -> int | None:
        """When the next step may begin; None: now."""
        if self._at_ns is not None:
            self._credit += max(0, now_ns - self._at_ns) * duty_ppm
        self._at_ns = self._began_ns = now_ns
        self._credit = min(self._credit, SAVED_NS * FULL_PPM) if duty_ppm < FULL_PPM else 0
        return now_ns - self._credit // duty_ppm if self._credit < 0 else None

    def worked(self, now_ns: int, busy_ns: int = 0) -> None:
        """A step has ended that began when it was last asked for. `busy_ns`: for so long it was really computed, if it is known:
        what others had the processor for is nothing that it has to pause for."""
        self._credit -= (busy_ns or max(0, now_ns - self._began_ns)) * FULL_PPM
