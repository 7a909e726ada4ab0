"""The host store's memory between two engines: made here, lent to one after the other, and overwritten here when there is none.

It holds copies of KV state and nothing that the gateway looks into, but for whose they are when a tenant is erased. Where there
is no such memory, an engine keeps its store in its own, and it ends with the engine.

What engines die of must not be handed to ever new ones. What the last step read is left out by the next engine itself
(`engine/arena.py`); after FRUITLESS engines in a row that took the store over and died before they had done anything, the next
one is told to drop all of it. So is one after which memory did not suffice: what the store has may be what is lacking."""

import logging
import os

from poise.engine.arena import Arena, make_memory
from poise.wire.to_engine import Inherit

log = logging.getLogger(__name__)

FRUITLESS = 2


class StoreKeeper:
    """The owner of the memory, and of the secret of the keys by which engines find what is in it."""

    def __init__(self, budget_bytes: int) -> None:
        self.secret = os.urandom(32)
        self._budget_bytes = budget_bytes
        self._fd: int | None = None
        self._is_lent = False
        self._n_fruitless = 0
        self._erased: dict[str, None] = {}
        """Tenants that were erased since an engine has the memory, and of which it has not said that it did."""

    def descriptor(self) -> int | None:
        """The number that an engine is given; None: there is no such memory now, and it has to do without."""
        if self._fd is None and self._budget_bytes:
            try:
                self._fd = make_memory(self._budget_bytes)
            except OSError as error:
                log.warning("the host store ends with the engine: %s", error)
        return self._fd

    def lend(self) -> Inherit:
        """An engine is ready: the memory is its own from here on."""
        self._is_lent = True
        return Inherit(self._n_fruitless < FRUITLESS)

    def take_back(self, *, fruitful: bool, is_short: bool) -> None:
        """The engine has ended. `fruitful`: it had done something. `is_short`: there was no memory for it."""
        if self._is_lent:
            self._n_fruitless = 0 if fruitful else self._n_fruitless + 1
        self._is_lent = False
        erased, self._erased = self._erased, {}
        for tenant in erased:
            self._overwrite(tenant)
        if is_short:
            self._overwrite(None)

    def erase(self, tenant: str) -> None:
        """Overwrite what is kept for a tenant: at once, or else as soon as the engine has ended that is to do it."""
        if self._is_lent:
            self._erased[tenant] = None
        else:
            self._overwrite(tenant)

    def erased(self, tenant: str) -> None:
        """The engine has done it."""
        self._erased.pop(tenant, None)

    def close(self) -> None:
        """There are no engines any more: nothing is left of what they stored."""
        self._overwrite(None)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _overwrite(self, tenant: str | None) -> None:
        """What a tenant has, or all (None). Where that cannot be done the memory goes back to the system as it is."""
        if self._fd is None:
            return
        try:
            with Arena(self._fd) as arena:
                if tenant is None:
                    arena.clear()
                else:
                    arena.erase(tenant)
        except (OSError, MemoryError):
            log.exception("the host store's memory cannot be mapped; it is given up")
            os.close(self._fd)
            self._fd = None
