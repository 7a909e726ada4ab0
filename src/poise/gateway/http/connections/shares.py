"""Who holds how much of one thing that can be used up. Pure bookkeeping: no clock, no connection.

Nobody gets all of it (`poise.scheduler.fairness.thresholds`): whoever holds something may take a share of what is still free,
so that the next one always finds some. Names that hold nothing are forgotten."""

from poise.scheduler.fairness.thresholds import may_take

STRANGERS = ""
"""The one name of all whose name is not known: together they may have what one may."""


class Shares:
    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._held: dict[str, int] = {}

    def held(self, holder: str) -> int:
        return self._held.get(holder, 0)

    @property
    def holders(self) -> int:
        """How many holders have some."""
        return len(self._held)

    def may_take(self, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """`share` and `least` as in poise.scheduler.fairness.thresholds."""
        held = self.held(holder)
        return may_take(amount, held=held, used=self.used, total=self.total, share=share, least=least)

    def take(self, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """Take an amount if the holder may have it; returns whether it was given."""
        if not self.may_take(holder, amount, share=share, least=least):
            return False
        self.add(holder, amount)
        return True

    def add(self, holder: str, amount: int) -> None:
        """Count an amount without a check: for holders that are bounded in another way."""
        if amount:
            self._held[holder] = self.held(holder) + amount
            self.used += amount

    def give(self, holder: str, amount: int) -> None:
        """Give an amount back."""
        left = self.held(holder) - amount
        assert left >= 0, (holder, amount, left)
        self.used -= amount
        if left:
            self._held[holder] = left
        else:
            self._held.pop(holder, None)

    def move(self, giver: str, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """Move an amount to another holder if that one may have it, else change nothing. Returns whether it moved."""
        self.give(giver, amount)
        if self.take(holder, amount, share=share, least=least):
            return True
        self.add(giver, amount)
        return False
