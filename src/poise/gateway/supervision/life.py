"""One engine from its start to its end, and what follows: on facts and times that are passed in, without a process or a socket.

    phase         ready    last words           lost         replaced     stop
    LOADING       READY    RESTARTING, or       RESTARTING   RESTARTING   STOPPED
    READY         READY    FAILED if another    RESTARTING   RESTARTING   STOPPED
    RESTARTING    READY    one would end the    RESTARTING   RESTARTING   STOPPED
    FAILED        READY    same way             RESTARTING   RESTARTING   STOPPED
    STOPPED       whatever an engine says or does: STOPPED, and no other one is started

In FAILED and STOPPED no engine is started; in every other phase one is running, or is started after a delay.

An engine hangs that is busy with one thing, or leaves its messages alone, for longer than it may. It notes what it does in its
black box; nothing is asked of it, so an engine that hangs can be seen to hang."""

from dataclasses import dataclass

from poise.engine.blackbox import NAMING, BoxReading, Phase
from poise.gateway.supervision.blame import Cause, Death, obituary
from poise.wire.fingerprint import MODEL_CHANGED
from poise.wire.messages import Fatal

STABLE_AFTER_S = 5.0
"""An engine that was ready for this long has earned a restart without delay, and a fresh back-off."""


RESTART_DELAY_FIRST_S = 0.5


@dataclass(slots=True)
class Life:
    """What is known of one engine. Times in seconds of one monotonic clock."""

    began_s: float
    ready_s: float = 0.0
    """0: it has not been."""
    hang: str = ""
    """What the watchdog ended it for."""
    last_words: Fatal | None = None
    """What it said of its own end."""
    has_worked: bool = False
    """A token has come of it."""
    is_outdated: bool = False
    """It was ended because its model file was written over."""

    def is_stable(self, now_s: float) -> bool:
        return bool(self.ready_s) and now_s - self.ready_s > STABLE_AFTER_S

    def death(self, code: int, reading: BoxReading | None) -> Death:
        """How it ended: what the gateway ended it for, before what it said, before what its exit code says.

        `reading`: what it left in its black box, which names the requests that it died with; None: nobody is named."""
        if self.is_outdated:
            return Death(Cause.EXIT, 0, MODEL_CHANGED, is_permanent=True)  # nobody is to blame
        cause = Cause.HANG if self.hang else Cause.CRASH if code < 0 else Cause.EXIT
        hung = f"the engine hung and was ended: {self.hang}" if self.hang else ""
        words = self.last_words or Fatal("", permanent=False)
        ids = reading.request_ids if reading is not None and reading.phase in NAMING else ()
        return Death(cause, code, hung or words.message or obituary(code), ids, words.permanent, words.short_of_memory)


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


def restart_after(life: Life, death: Death, backoff: Backoff, now_s: float, *, replaced: bool) -> tuple[float, bool]:
    """In how many seconds another engine is started, and whether that is so late, after one that never was ready, that requests
    give it up. An engine that was `replaced` has its successor at once, and the back-off is as it was."""
    delay_s = 0.0 if replaced else backoff.after(stable=life.is_stable(now_s), lasting=death.is_lasting)
    return delay_s, not life.ready_s and backoff.is_longest(delay_s)


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
