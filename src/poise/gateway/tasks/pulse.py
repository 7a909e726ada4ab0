"""The pulse: one loop a second for everything that looks at the server once a second.

    pulse = Pulse(tasks, {"levels": degradation.look, "history": history.sample})
    pulse.start()                                                  # in the event loop

The looks are done one after the other, in their order, so that each sees what those before it have made of this second. Each
has an account of its own among the tasks: one that raises is logged, counted and shown under its name, waits a little longer
each time before it is tried again, and stops none of the others."""

import asyncio
from collections.abc import Callable, Mapping
from math import ceil

from poise.gateway.tasks.tasks import Tasks

PERIOD_S = 1.0
_TASK = "pulse"


class Pulse:
    """`looks` by name. The tasks must not know these names yet."""

    def __init__(self, tasks: Tasks, looks: Mapping[str, Callable[[], None]]) -> None:
        self._tasks = tasks
        self._looks = dict(looks)
        self._left_out: dict[str, int] = {}
        """Beats for which a look that failed is still left out."""

    def start(self) -> None:
        """Run the looks once a second until the tasks are stopped; the first time in a second."""
        for name in self._looks:
            self._tasks.watch(name)
        self._tasks.every(_TASK, PERIOD_S, self.beat)

    def beat(self) -> None:
        """Run every look once."""
        for name, look in self._looks.items():
            if n_left := self._left_out.pop(name, 0):
                self._left_out[name] = n_left - 1
                continue
            try:
                look()
            except (Exception, asyncio.CancelledError) as error:  # the latter is of something that the look came upon
                delay_s = self._tasks.failed(name, error)
                assert delay_s is not None, "only an essential task cannot go on"
                self._left_out[name] = ceil(delay_s / PERIOD_S) - 1
            else:
                self._tasks.worked(name)
