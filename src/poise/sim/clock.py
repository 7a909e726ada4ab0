"""Virtual time: it moves only when somebody says how long something took."""


class VirtualClock:
    """A Clock whose time is set by the simulated runner and by the simulation's waits."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        assert duration_ns >= 0, f"time cannot go back by {duration_ns} ns"
        self._now_ns += duration_ns

    def advance_to(self, when_ns: int) -> None:
        """Move to `when_ns`; a moment that has passed already changes nothing."""
        self._now_ns = max(self._now_ns, when_ns)
