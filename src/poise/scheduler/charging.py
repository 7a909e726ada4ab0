"""What a step cost, and who pays for it: each account for its own rows, and the share of every step that background is owed."""

from poise.scheduler.fairness.fairness import split_cost
from poise.scheduler.lifecycle import Lifecycle
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.plan import DRAWN, ENDED, Batch, BatchResult, Given, StepPlan, StepResult
from poise.scheduler.planning.planner import batch_shares, shape_of
from poise.scheduler.request import Event, FinishReason, RequestClass


def charge_step(books: Books, life: Lifecycle, plan: StepPlan, result: StepResult, events: list[Event]) -> None:
    """Charge every batch of a step that was carried out, and advance its sequences. What comes of it is added to `events`."""
    lost = frozenset(result.lost)
    total_us, background_us = 0, 0
    for batch, batch_result in zip(plan.batches, result.batches, strict=True):
        total_us += batch_result.cost_us
        background_us += _charge_batch(books, life, batch, batch_result, lost, events)
    _settle_background(books, total_us, background_us)


def _charge_batch(
    books: Books, life: Lifecycle, batch: Batch, result: BatchResult, lost: frozenset[int], events: list[Event]
) -> int:
    """Returns what background work cost, in microseconds.

    The pass is shared: its cost is split by the cost model. Drawing a token is for one sequence, which pays for just that."""
    chunks = tuple(c for c in batch.chunks if c.request_id not in lost) if lost else batch.chunks
    model = books.models[batch.pool]
    sampled_us, errors, scored_us = dict(result.sampled_us), dict(result.row_errors), dict(result.scored_us)
    given = dict.fromkeys(result.ended, ENDED)
    given.update((request_id, Given(n_tokens, ends, cut)) for request_id, n_tokens, ends, cut in result.given)
    pass_us = max(0, result.cost_us - sum(sampled_us.values()) - sum(scored_us.values()))
    costs = split_cost(pass_us, batch_shares(chunks, model))
    if chunks and not (result.failed or errors or scored_us):
        model.observe(shape_of(chunks), pass_us)
    background_us = 0
    for chunk, share_us in zip(chunks, costs, strict=True):
        sequence = life.sequences[chunk.request_id]
        request_class = sequence.request_class
        own_us = sampled_us.get(chunk.request_id, 0)
        cost_us = share_us + own_us + scored_us.get(chunk.request_id, 0)
        if own_us:
            sequence.learn_sampling(own_us)
        sequence.served_us += cost_us
        books.served[request_class].charge(sequence.request.account, cost_us)
        if request_class is RequestClass.BACKGROUND:
            background_us += cost_us
        if failed := result.failed or errors.get(chunk.request_id, ""):
            events.append(life.finish(sequence, FinishReason.FAILED, failed))
        else:
            life.advance(sequence, chunk, given.get(chunk.request_id, DRAWN), events)
    return background_us


def _settle_background(books: Books, total_us: int, background_us: int) -> None:
    """Rule R4's account: while both classes have work, background is owed its share of every step."""
    both_live = books.is_live(RequestClass.INTERACTIVE) and books.is_live(RequestClass.BACKGROUND)
    if not (both_live and books.runs(RequestClass.BACKGROUND)):
        books.background_credit_us = 0.0
        return
    background = books.policy.classes[RequestClass.BACKGROUND]
    owed = background.min_share * total_us - background_us
    bound = float(background.itl_target_us)
    books.background_credit_us = min(4 * bound, max(-bound, books.background_credit_us + owed))
