"""How long a request will wait for its slot: estimated from the cost models and the backlog, held against what then happened.

The estimate adds up what is ahead: prompts at their predicted cost, and of the outputs that are likely the share that requests
of the class have really used. That is a serial sum, while a batch shares its cost among many; what the estimates were off by, in
the mean of its logarithm, corrects the next ones. The error that is left is a metric."""

from collections.abc import Callable, Mapping
from math import exp, log

from poise.scheduler.lengths import OutputLengths
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.budget import CostModel
from poise.scheduler.queues import WaitingQueue
from poise.scheduler.request import Queued, RequestClass
from poise.scheduler.sequence import Sequence

MEMORY = 0.95
"""How much of what was learnt survives one more observation."""

GRACE_US = 100_000
"""Added to both sides when an estimate is compared with what happened: nobody minds being 50 ms off."""


class WaitEstimator:
    """Estimates by class, and what they are worth."""

    def __init__(self, models: Mapping[str, CostModel], lengths: OutputLengths) -> None:
        self._models = models
        self.lengths = lengths
        self._correction = dict.fromkeys(RequestClass, 0.0)
        self.error = dict.fromkeys(RequestClass, 0.0)
        """By class, the mean of |log(waited / estimated)| over recent starts that waited: 0.7 is a factor of two."""

    def learn_wait(self, request_class: RequestClass, estimated_us: int, waited_us: int) -> None:
        """A request whose estimate was `estimated_us` got its slot after `waited_us`."""
        if estimated_us < GRACE_US and waited_us < GRACE_US:
            return  # it did not wait, as estimated
        off = log((waited_us + GRACE_US) / (estimated_us + GRACE_US))
        self._correction[request_class] += (1 - MEMORY) * off
        self.error[request_class] = MEMORY * self.error[request_class] + (1 - MEMORY) * abs(off)

    def estimate_us(
        self,
        request_class: RequestClass,
        queues: Mapping[tuple[RequestClass, str], WaitingQueue],
        running: Mapping[int, Sequence],
        slots_left: Mapping[str, int],
    ) -> int:
        """The wait of one more request behind all that are queued, and one in the middle of those that run.

        `slots_left`: how many more slots of each pool the class may have now. Where that is enough for all who are queued, they
        wait for each other's prompts and for nobody's end."""
        ahead = 0.0
        before = {key: queue for key, queue in queues.items() if key[0] in (request_class, RequestClass.INTERACTIVE)}
        n_queued = {pool: sum(q.n_queued for (_, name), q in before.items() if name == pool) for pool in slots_left}
        has_place = {pool: n_queued[pool] < n_left for pool, n_left in slots_left.items()}
        for (owner, pool), queue in before.items():
            ahead += self._work_us(owner, pool, queue.prompt_tokens, 0 if has_place[pool] else queue.output_tokens)
        for sequence in running.values():
            if has_place[sequence.pool]:
                continue
            left = max(1, sequence.n_likely - sequence.n_output)
            prompt = 0 if sequence.is_decoding else sequence.n_pending
            ahead += self._work_us(request_class, sequence.pool, prompt, left) / len(running)
        return int(ahead * exp(self._correction[request_class]))

    def _work_us(self, request_class: RequestClass, pool: str, prompt_tokens: int, output_tokens: int) -> float:
        """Predicted compute of that many prompt and output tokens, attention apart."""
        model = self._models[pool]
        return prompt_tokens * model.prompt_us + output_tokens * self.lengths.used[request_class] * model.decode_us


def positions(books: Books, estimate_us: Callable[[RequestClass], int]) -> list[Queued]:
    """Where each new request stands in its class's queue, and its share of what one more would wait."""
    found = []
    for request_class in RequestClass:
        rank = books.served[request_class].rank
        new = [
            (rank(s.request.account), s.order_key, s.request.request_id)
            for (owner, _), queue in books.queues.items()
            if owner is request_class and queue.n_new
            for s in queue.queued()
            if not s.started
        ]
        if new:
            whole_us = estimate_us(request_class)
            for i, (_, _, request_id) in enumerate(sorted(new), start=1):
                found.append(Queued(request_id, i, whole_us * i // len(new)))
    return found
