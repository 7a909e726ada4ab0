"""A sleeper and those who wake it: the one signal of the event loop that records and their readers need."""

import asyncio
from typing import Literal


class Wakeup(asyncio.Event):
    """Lets one waiter sleep until somebody has something for it. Who is woken looks for itself what it is."""

    async def wait(self) -> Literal[True]:
        """Returns at the next `set`. What was set before does not count."""
        self.clear()
        return await super().wait()
