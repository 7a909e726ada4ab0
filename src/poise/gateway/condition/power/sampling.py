"""Reads the sources in a thread, because a file may block: nobody who looks at the readings ever waits for one.

The thread sleeps until it is woken, so an idle process does not wake for it. A source that is not done within DEADLINE_S is asked
more and more rarely; one that does not come back at all is left out, and another thread goes on with the others."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.gateway.condition.power.sources import Kind, Probe, Quality, Reading

DEADLINE_S = 0.1
STUCK_S = 2.0
AGE_MAX_S = 15.0
"""An older reading says nothing of now."""
PAUSE_FIRST_S, PAUSE_MAX_S = 5.0, 300.0


@dataclass(slots=True)
class _Source:
    probe: Probe
    due_s: float = 0.0
    pause_s: float = 0.0
    is_stuck: bool = False


class Sampling:
    """The last readings of all kinds. Called from one thread, which it never holds up."""

    def __init__(self, probes: Sequence[Probe], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = [_Source(probe) for probe in probes]
        self._clock = clock
        self._known: dict[Kind, tuple[float, float]] = {}
        self._wanted = threading.Event()
        self._at: tuple[_Source, float] | None = None
        """The source that is being read, and since when."""
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Have everything read again, soon."""
        at, now_s = self._at, self._clock()
        if self._thread is None or (at is not None and now_s - at[1] > STUCK_S):
            if at is not None:
                at[0].is_stuck = True
            self._at = None
            self._wanted = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._wanted,), name="power", daemon=True)
            self._thread.start()
        self._wanted.set()

    def readings(self) -> dict[Kind, Reading]:
        """Every kind, as it was read last."""
        now_s, found = self._clock(), dict(self._known)
        ages = {kind: now_s - at_s for kind, (_, at_s) in found.items()}
        absent = {kind: Reading(kind, None, 0.0, Quality.ABSENT) for kind in Kind}
        return absent | {k: Reading(k, value, ages[k]) for k, (value, _) in found.items() if ages[k] <= AGE_MAX_S}

    def read(self, wanted: threading.Event | None = None) -> None:
        """Read what is due, one after the other."""
        for source in self._sources:
            began_s = self._clock()
            if source.is_stuck or began_s < source.due_s:
                continue
            self._at = (source, began_s)
            try:
                found = source.probe.read(began_s)
            except (OSError, ValueError, ArithmeticError):
                found = {}  # a driver's file with something else in it than it should have
            if wanted is not None and wanted is not self._wanted:
                source.is_stuck = False  # it came back after all, and another thread has taken over
                return
            self._at = None
            now_s = self._clock()
            slow = now_s - began_s > DEADLINE_S
            source.pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, 2 * source.pause_s)) if slow else 0.0
            source.due_s = now_s + source.pause_s
            kept = {kind: known for kind, known in self._known.items() if kind not in source.probe.kinds}
            self._known = kept | {kind: (value, now_s) for kind, value in found.items()}

    def _run(self, wanted: threading.Event) -> None:
        while wanted is self._wanted:
            wanted.wait()
            wanted.clear()
            if wanted is self._wanted:
                self.read(wanted)
