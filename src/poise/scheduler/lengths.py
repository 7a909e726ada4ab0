"""How long an answer will probably be: learnt by class and account from those that ended, in bounded memory.

What a request may generate is a ceiling, which many clients set far above what they get: it says little of the room and the time
that it will need. For each account a high quantile of its lengths is followed by stochastic approximation: a longer answer moves
it up by a part of itself, a shorter one down by less, so that it comes to rest where only one in ten is longer. (Robbins and
Monro's scheme, on the logarithm.) The share of that which answers really use, a mean by class, makes an expectation for waits."""

from poise.scheduler.policy import LengthPolicy
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.sequence import Sequence

USED_FIRST = 0.5
USED_MEMORY = 0.95
"""How much of the mean share survives one more answer."""


class OutputLengths:
    """Nothing here outlives the scheduler, and an account that is not known begins where its class is."""

    def __init__(self, policy: LengthPolicy) -> None:
        self._policy = policy
        self._classes = {c: float(policy.first_tokens) for c in RequestClass}
        self._accounts: dict[tuple[RequestClass, str], float] = {}
        """The account that learnt last is last."""
        self.used = dict.fromkeys(RequestClass, USED_FIRST)
        """By class, the mean of what answers had of what was likely."""

    def likely(self, request: Request) -> int:
        """Output tokens that one answer in ten exceeds, as far as is known: more than it has already, and no more than it may
        have."""
        request_class = request.request_class
        known = self._accounts.get((request_class, request.account), self._classes[request_class])
        return min(request.max_output, max(int(known), request.n_output + 1))

    def learn(self, sequence: Sequence, *, is_whole: bool) -> None:
        """It ended; `is_whole`: by itself. One that was cut would have been longer, nobody knows by how much."""
        request, n_output = sequence.request, sequence.n_output
        request_class, key = request.request_class, (request.request_class, request.account)
        used = min(1.0, n_output / sequence.n_likely)
        self.used[request_class] = USED_MEMORY * self.used[request_class] + (1 - USED_MEMORY) * used
        known = self._accounts.pop(key, self._classes[request_class])
        self._accounts[key] = self._moved(known, n_output, is_whole=is_whole)
        self._classes[request_class] = self._moved(self._classes[request_class], n_output, is_whole=is_whole)
        if len(self._accounts) > self._policy.accounts_max:
            del self._accounts[next(iter(self._accounts))]

    def forget(self, account: str) -> None:
        """Do not remember how long its answers were."""
        for request_class in RequestClass:
            self._accounts.pop((request_class, account), None)

    def _moved(self, known: float, n_output: int, *, is_whole: bool) -> float:
        policy = self._policy
        if n_output > known:
            return known * (1 + policy.step * policy.quantile)
        return max(1.0, known * (1 - policy.step * (1 - policy.quantile))) if is_whole else known
