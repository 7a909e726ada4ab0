"""What becomes of one request's guesses: how many of a draft come true, learnt from its own drafts and from nobody else's.

How long drafts take can be told from outside; so where a request begins is a constant, and not what others have found. Whole
numbers only, shares in millionths."""

from dataclasses import dataclass, field

PPM = 1_000_000
MATCHES = (4, 8, 16)
"""What is known of guesses is told apart by how many tokens before them were equal: fewer than 4, than 8, than 16, or more."""
FIRST_PPM = (450_000, 650_000, 850_000, 900_000)
"""By that: how often the first guess is thought to come true before there was any. Measured over five
kinds of answers."""
LATER_PPM = 800_000
"""And each further one, where all before it did."""
FAILURES_MAX = 3
"""After so many drafts of which nothing came true there are none for a while."""
PASSED_MAX = 16
"""So many guesses that were passed over are a while: then it is tried again as if nothing were known, with one guess at least,
whatever that costs by what is known: what rows cost beside a lone stream's own is learnt from nothing else."""


@dataclass(slots=True)
class Acceptance:
    """What became of one request's guesses."""

    first: list[int] = field(default_factory=lambda: list(FIRST_PPM))
    later: int = LATER_PPM
    n_failed: int = 0
    n_passed: int = 0
    probes: bool = False

    def learn(self, n_matched: int, n_drafted: int, n_accepted: int) -> None:
        """A draft was computed, after so many equal tokens, and so many of its guesses came true."""
        kind, self.n_passed, self.probes = _kind(n_matched), 0, False
        self.first[kind] += ((n_accepted > 0) * PPM - self.first[kind]) // 4
        for i in range(1, min(n_accepted + 1, n_drafted)):
            self.later += ((i < n_accepted) * PPM - self.later) // 8
        self.n_failed = 0 if n_accepted else self.n_failed + 1

    def passed(self) -> None:
        """There were guesses, and they did not seem worth their cost."""
        self.n_passed += 1
        if self.n_passed >= PASSED_MAX:
            self.first, self.later = list(FIRST_PPM), LATER_PPM
            self.n_failed = self.n_passed = 0
            self.probes = True

    def expected(self, n_matched: int, most: int) -> list[int]:
        """How many of k guesses come true, in millionths, for k from 0 to `most`."""
        sums, chance = [0], self.first[_kind(n_matched)]
        for _ in range(most):
            sums.append(sums[-1] + chance)
            chance = chance * self.later // PPM
        return sums


def _kind(n_matched: int) -> int:
    return sum(n_matched >= limit for limit in MATCHES)
