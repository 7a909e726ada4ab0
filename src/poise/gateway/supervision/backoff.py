"""When the next engine is started."""

RESTART_DELAY_FIRST_S = 0.5


class Backoff:
    """How long to wait before the next start: not at all after a stable time, then doubling from half a second."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._next_s = 0.0

    def after(self, *, stable: bool, lasting: bool = False) -> float:
        """`stable`: the engine that was lost had done its work for a while. `lasting`: it ended of what does not pass soon."""
        delay_s = self._max_s if lasting else 0.0 if stable else self._next_s
        self._next_s = min(2 * delay_s or RESTART_DELAY_FIRST_S, self._max_s)
        return delay_s

    def is_longest(self, delay_s: float) -> bool:
        return delay_s >= self._max_s
