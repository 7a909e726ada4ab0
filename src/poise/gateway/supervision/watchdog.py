"""Whether an engine hangs: it is busy with one thing, or leaves its messages alone, for longer than it may.

The engine notes what it does in its black box; nothing is asked of it, so an engine that hangs can be seen to hang."""

from poise.engine.blackbox import BoxReading, Phase


def look_every_s(limit_s: float) -> float:
    """How often to look: a hang is noticed at most a quarter of the limit late."""
    return min(1.0, limit_s / 4)


class Watchdog:
    """Judges one engine from when it is ready. Times are of the monotonic clock, which both processes share."""

    def __init__(self, limit_s: float, now_ns: int) -> None:
        self._limit_ns = int(limit_s * 1e9)
        self._interval_ns = look_every_s(limit_s) * 1e9
        self._began_ns = now_ns
        self._looked_ns = now_ns
        self._first_sent_ns = 0
        """When the oldest message was sent that is not known to have been taken; 0: all have been."""
        self._last_sent_ns = 0

    def sent(self, now_ns: int) -> None:
        """A message went to the engine."""
        self._last_sent_ns = now_ns
        if not self._first_sent_ns:
            self._first_sent_ns = now_ns

    def look(self, now_ns: int, reading: BoxReading) -> str:
        """Why the engine must be taken to hang, or "" if it need not."""
        waited_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        if self._first_sent_ns and reading.drained_ns >= self._first_sent_ns:
            self._first_sent_ns = self._last_sent_ns if reading.drained_ns < self._last_sent_ns else 0
        # Who was stopped himself (a suspended machine, a debugger) gives the engine until the next look to show itself.
        if waited_ns > 3 * self._interval_ns:
            return ""
        limit = f"engine.watchdog_s is {self._limit_ns / 1e9:g}"
        busy_ns = now_ns - max(reading.at_ns, self._began_ns)
        if reading.phase is not Phase.RESTING and busy_ns > self._limit_ns:
            return f"it has been {reading.phase} in step {reading.step} for {busy_ns / 1e9:.1f} s; {limit}"
        if self._first_sent_ns and now_ns - self._first_sent_ns > self._limit_ns:
            untouched_s = (now_ns - self._first_sent_ns) / 1e9
            return f"it has left its messages alone for {untouched_s:.1f} s; {limit}"
        return ""
