"""What of the host store outlives this engine: which entries are said to be whole, and what an engine before has left.

Without an arena the store ends with the engine, and all of this is nothing."""

from collections.abc import Iterable

from poise.engine.arena import Arena
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning.plan import KvOperation, LoadSlot
from poise.scheduler.planning.survival import LastingPlacement


class Inheritance:
    """Between the books of the store, which know what an entry is, and the arena, in which the next engine looks."""

    def __init__(self, arena: Arena | None, books: LastingPlacement, fingerprint: bytes) -> None:
        """`fingerprint`: of all that a state depends on; an engine with another one cannot use what this one leaves."""
        self._arena, self._books, self._fingerprint = arena, books, fingerprint

    def take(self, *, keep: bool) -> list[StoredPrefix]:
        """What is there, the longest unused first."""
        return [] if self._arena is None else self._arena.inherit(self._fingerprint, keep=keep)

    def stored(self, number: int) -> None:
        """The state of an entry is whole."""
        if self._arena is not None and (entry := self._books.describe(number)) is not None:
            self._arena.commit(entry)

    def reading(self, operations: Iterable[KvOperation]) -> None:
        """A step begins that reads entries."""
        if self._arena is not None:
            for operation in operations:
                if isinstance(operation, LoadSlot):
                    self._arena.reading(operation.entry)

    def read(self) -> None:
        """The step has ended, and the engine has not."""
        if self._arena is not None:
            self._arena.read()

    def withhold(self) -> None:
        """A tenant was erased: what the books do not leave to another engine any more is taken off the directory at once."""
        if self._arena is not None:
            for number in self._arena.committed:
                if self._books.describe(number) is None:
                    self._arena.withhold(number)

    def give_back(self) -> None:
        """Memory that is kept for entries to come goes back to the system."""
        if self._arena is not None:
            self._arena.give_back()

    def resident_bytes(self, stored_bytes: int) -> int:
        """Resident memory of the store, whose entries take `stored_bytes`."""
        return stored_bytes if self._arena is None else self._arena.resident_bytes
