"""Which kept context will be wanted next, and so which one makes room for another.

What was used more than once has a rhythm: an agent's next turn comes when its tool has run, a person's when they have read. What
is within its rhythm is expected at its end; what is late, after as long again as it has been away, as it is with heavy-tailed
times between uses; what was never seen to come back, half a minute later than that, because most of it never does. The context
that is expected last goes first: Belady's rule (1966) with an estimate of the future. Among contexts without a rhythm that is the
one least recently used."""

from dataclasses import dataclass

GAP_MEMORY = 0.5
"""How much of what was known of the time between uses survives one more use: few turns are all that there are."""
UNSEEN_NS = 30_000_000_000
"""What was used once is expected so much later."""
KEPT_US = 30_000_000
"""A context that is expected in this time is worth half of what carrying it out and in takes."""


@dataclass(slots=True)
class Use:
    """When something kept was used last, and the mean time between its uses; 0: there was one."""

    used_ns: int = 0
    gap_ns: int = 0

    def again(self, now_ns: int) -> "Use":
        """As it stands after one more use."""
        gap_ns = max(0, now_ns - self.used_ns)
        return Use(now_ns, int(GAP_MEMORY * self.gap_ns + (1 - GAP_MEMORY) * gap_ns) if self.gap_ns else gap_ns)

    def wanted_in_ns(self, now_ns: int) -> int:
        """How long it will probably be until the next use."""
        away_ns = max(0, now_ns - self.used_ns)
        return max(self.gap_ns - away_ns, away_ns) if self.gap_ns else UNSEEN_NS + away_ns

    def worth(self, now_ns: int) -> float:
        """What it is worth to keep, 1: it is wanted at once; 0: never again."""
        return KEPT_US / (KEPT_US + self.wanted_in_ns(now_ns) / 1000)
