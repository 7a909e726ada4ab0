"""Carries a plan out on a runner: KV operations first, then the batches, each measured.

An operation that fails does not stop the step. Whoever needed it is left out of the batches, and the result says so; the
scheduler has those tokens computed again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from poise.engine.blackbox import BoxWriter
from poise.engine.blocks import BlockChain
from poise.engine.drafting import NgramIndex
from poise.engine.inheritance import Inheritance
from poise.engine.ports import Clock, Row, Runner, RunnerError, Sampled, words_of
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.plan import Batch, BatchResult, Chunk, KvOperation, StepPlan, StepResult
from poise.scheduler.policy import DraftPolicy
from poise.scheduler.request import BLOCK_TOKENS, Request
from poise.wire.messages import Drafted, Prefill, PromptLogprobs
from poise.wire.to_engine import SamplingParams


@dataclass(slots=True)
class Live:
    """A request's tokens, the prompt and what was generated so far (some of it perhaps by another engine), and the chain of its
    blocks' keys."""

    request: Request
    tokens: list[int]
    sampling: SamplingParams
    chain: BlockChain
    opened: bool = False
    prediction: Sequence[int] = ()
    """What its output will probably be like, as its caller says."""
    index: NgramIndex | None = None
    """Made when it is first looked for guesses."""


class Execution:
    """Runs plans. `live` is the engine's own table of requests, read here and extended by the sampled tokens.

    Whatever can take the process down is noted in `box` before it is done, with the requests that it is done for."""

    def __init__(
        self, runner: Runner, clock: Clock, live: dict[int, Live], box: BoxWriter, drafts: DraftPolicy, inheritance: Inheritance
    ) -> None:
        self._runner = runner
        self._drafts = drafts
        self._clock = clock
        self._live = live
        self._box = box
        self._inheritance = inheritance
        self.kv_ns = self.forward_ns = self.sample_ns = 0
        """Time that the last plan took in the runner: carrying cells, in the model, drawing tokens."""
        self.prompt_tokens = 0
        self.prefills: list[Prefill] = []
        """The prompt chunks that the last plan computed."""
        self.scores: list[PromptLogprobs] = []
        """And the log probabilities of their tokens, of those that are scored."""
        self.drafted: list[Drafted] = []
        self._unfilled: set[tuple[str, int]] = set()
        """Slots that an operation of the present plan should have filled, and did not."""

    def carry_out(self, plan: StepPlan) -> tuple[StepResult, list[Sampled]]:
        """Everything a plan says, and what came of it. Sampled tokens that do not end their sequence are added to its tokens."""
        stored: list[tuple[int, int]] = []
        unstored: list[int] = []
        lost: list[int] = []
        carried_ns, carried_cells = 0, 0
        self.kv_ns = self.forward_ns = self.sample_ns = 0
        self._unfilled.clear()
        self.prefills.clear()
        self.scores.clear()
        self.drafted.clear()
        if plan.operations:
            served = [o.request_id for o in plan.operations if isinstance(o, kv.LoadSlot | kv.CopySlot | kv.MoveSlot)]
            self._box.computing(plan.step, self._clock.now_ns(), served)
            self._inheritance.reading(plan.operations)
        for operation in plan.operations:
            began_ns = self._clock.now_ns()
            done = self._apply(operation, stored, unstored, lost)
            spent_ns = self._clock.now_ns() - began_ns
            self.kv_ns += spent_ns
            if done and isinstance(operation, kv.StoreSlot | kv.LoadSlot | kv.CopySlot):
                carried_ns += spent_ns
                carried_cells += operation.n_cells
        results: list[BatchResult] = []
        sampled: list[Sampled] = []
        for batch in plan.batches:
            result, drawn = self._run(plan.step, batch, lost)
            results.append(result)
            sampled += drawn
        self._inheritance.read()
        blocks, guesses = self._extend(sampled), self._look_for_guesses(sampled)
        carried = (carried_ns // 1000, carried_cells)
        found = StepResult(tuple(results), tuple(stored), tuple(unstored), tuple(lost), blocks, *carried, guesses=guesses)
        return found, sampled

    def _apply(self, operation: KvOperation, stored: list[tuple[int, int]], unstored: list[int], lost: list[int]) -> bool:
        """Whether it was carried out. One that builds on an operation which failed in this plan fails as well."""
        missing = isinstance(operation, kv.DropEntry | kv.LoadSlot) and operation.entry in unstored
        try:
            if missing and isinstance(operation, kv.DropEntry):
                return False  # it was to be dropped in the step in which storing it failed
            if missing:
                raise RunnerError("the entry could not be stored")
            if isinstance(operation, kv.StoreSlot | kv.CopySlot):
                read = operation.slot if isinstance(operation, kv.StoreSlot) else operation.source
                if (operation.pool, read) in self._unfilled:
                    raise RunnerError("the slot could not be filled")
            n_bytes = self._runner.apply(operation)
        except RunnerError:
            if isinstance(operation, kv.StoreSlot):
                unstored.append(operation.entry)
            elif isinstance(operation, kv.LoadSlot | kv.CopySlot | kv.MoveSlot):
                lost.append(operation.request_id)
                slot = operation.slot if isinstance(operation, kv.LoadSlot) else operation.target
                self._unfilled.add((operation.pool, slot))
            else:
                raise
            return False
        if isinstance(operation, kv.StoreSlot):
            stored.append((operation.entry, n_bytes))
            self._inheritance.stored(operation.entry)
        return True

    def _run(self, step: int, batch: Batch, lost: list[int]) -> tuple[BatchResult, list[Sampled]]:
        rows, prompts, errors = [], list[Chunk](), list[tuple[int, str]]()
        scored: list[tuple[Row, list[int]]] = []
        for chunk in batch.chunks:
            if chunk.request_id in lost:
                continue
            live = self._live[chunk.request_id]
            if not live.opened and (refused := self._open(step, live)):
                errors.append((chunk.request_id, refused))
                continue
            start, tokens = chunk.start, live.tokens[chunk.start : chunk.start + chunk.n_tokens]
            if live.request.scores and (n := min(len(tokens), live.request.n_prompt - 1 - start)) > 0:
                row = Row(chunk.request_id, chunk.slot, start, tokens[:n], sample=False)
                scored.append((row, live.tokens[start + 1 : start + 1 + n]))
                start, tokens = start + n, tokens[n:]
            if chunk.n_drafted and live.index is not None:
                guesses, _ = live.index.guess(chunk.n_drafted)
                rows.append(Row(chunk.request_id, chunk.slot, start, [*tokens, *guesses], chunk.sample, len(guesses)))
            elif tokens:
                rows.append(Row(chunk.request_id, chunk.slot, start, tokens, chunk.sample))
            if chunk.is_prompt:
                prompts.append(chunk)
        if not rows and not scored:
            return BatchResult(0, row_errors=tuple(errors)), []
        began_ns = self._clock.now_ns()
        n_tokens = sum(len(row.tokens) for row in rows) + sum(len(row.tokens) for row, _ in scored)
        self._box.computing(step, began_ns, [row.request_id for row in (*rows, *(row for row, _ in scored))])
        scored_us = self._score(batch.pool, scored, errors) if scored else ()
        if errors and scored:
            rows = [row for row in rows if row.request_id not in dict(errors)]
        failed, drawn = "", list[Sampled]()
        try:
            drawn = self._runner.execute(batch.pool, rows) if rows else []
        except RunnerError as error:
            failed = words_of(error)
        cost_ns = self._clock.now_ns() - began_ns
        for chunk in () if failed else prompts:
            self.prompt_tokens += chunk.n_tokens
            n_beside = n_tokens - chunk.n_tokens
            self.prefills.append(Prefill(chunk.request_id, chunk.n_tokens, cost_ns // 1000, n_beside))
        sampling_ns = sum([draw.cost_ns for draw in drawn])
        self.sample_ns += sampling_ns
        self.forward_ns += cost_ns - sampling_ns
        drawn = [self._within_allowance(s) if s.further else s for s in drawn]
        ended = tuple(s.token.request_id for s in drawn if s.ends)
        given = tuple([(s.token.request_id, 1 + len(s.further), s.closes, s.cut) for s in drawn if s.further or s.closes])
        drafted = self._drafted(rows, drawn)
        sampled_us = tuple([(s.token.request_id, s.cost_ns // 1000) for s in drawn])
        if any(s.failed for s in drawn):
            errors += [(s.token.request_id, s.failed) for s in drawn if s.failed]
            drawn = [s for s in drawn if not s.failed]
        return BatchResult(cost_ns // 1000, ended, failed, sampled_us, tuple(errors), given, scored_us, drafted), drawn

    def _drafted(self, rows: list[Row], drawn: list[Sampled]) -> tuple[tuple[int, int, int], ...]:
        """Of each row with guesses: how many there were, and how many came true. None of a pass that failed."""
        if not drawn or not any(row.n_guessed for row in rows):
            return ()
        accepted = {draw.token.request_id: draw.n_accepted for draw in drawn}
        found = [(row.request_id, row.n_guessed, accepted[row.request_id]) for row in rows if row.n_guessed]
        self.drafted += [Drafted(*one) for one in found]
        return tuple(found)

    def _within_allowance(self, draw: Sampled) -> Sampled:
        """A forced run ends where the output must."""
        live = self._live[draw.token.request_id]
        room = live.request.n_prompt + live.request.max_output - len(live.tokens) - 1
        return replace(draw, further=draw.further[:room], closes=False, cut=False) if len(draw.further) > room else draw

    def _score(
        self, pool: str, scored: list[tuple[Row, list[int]]], errors: list[tuple[int, str]]
    ) -> tuple[tuple[int, int], ...]:
        """Rows of prompts whose log probabilities are wanted, each by itself. Returns what each took; adds to `errors`."""
        spent = []
        for row, targets in scored:
            began_ns = self._clock.now_ns()
            try:
                self.scores.append(self._runner.score(pool, row, targets))
            except Exception as error:
                errors.append((row.request_id, words_of(error)))
            spent.append((row.request_id, (self._clock.now_ns() - began_ns) // 1000))
        return tuple(spent)

    def _open(self, step: int, live: Live) -> str:
        """Prepare its sampling. Returns why that is not possible: a fault of the request, and of nobody beside it."""
        request = live.request
        prompt, output = live.tokens[: request.n_prompt], live.tokens[request.n_prompt :]
        self._box.taking(step, self._clock.now_ns(), request.request_id)
        try:
            self._runner.open(request.request_id, prompt, live.sampling, output)
        except Exception as error:
            return words_of(error)
        live.opened = True
        return ""

    def _extend(self, sampled: list[Sampled]) -> tuple[tuple[int, int], ...]:
        """Add the sampled tokens to their sequences; returns the keys of the blocks they completed."""
        keys: list[tuple[int, int]] = []
        for draw in sampled:
            if draw.ends:
                continue
            request_id = draw.token.request_id
            live = self._live[request_id]
            n_blocks = len(live.tokens) // BLOCK_TOKENS
            live.tokens.append(draw.token.token)
            if draw.further:
                live.tokens += [token.token for token in draw.further]
            if len(live.tokens) // BLOCK_TOKENS > n_blocks:
                keys += [(request_id, key) for key in live.chain.extend(live.tokens)]
        return tuple(keys)

    def _look_for_guesses(self, sampled: list[Sampled]) -> tuple[tuple[int, int, int], ...]:
        """What the next step could draft, where few enough draw that it may."""
        found: list[tuple[int, int, int]] = []
        if len(sampled) > self._drafts.max_streams:
            return ()
        for draw in sampled:
            if draw.ends or draw.closes:
                continue
            live = self._live[draw.token.request_id]
            if live.index is None:
                live.index = NgramIndex(live.prediction, live.request.n_prompt)
            live.index.extend(live.tokens)
            guesses, n_matched = live.index.guess(self._drafts.max_tokens)
            if guesses:
                found.append((draw.token.request_id, len(guesses), n_matched))
        return tuple(found)
