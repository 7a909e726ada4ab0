"""Computes the scheduler's batches on llama.cpp: one context per KV pool over one set of weights.

The live adapter of the `Runner` port. It holds no policy: rows, slots and stored entries come from the plan, and what does
not fit is an error. Everything runs on the engine's one compute thread; other threads must keep out."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np

from poise.engine.arena import Arena
from poise.engine.drafting import draw_along
from poise.engine.ports import NO_TOKEN, Row, RunnerError, Sampled, check_known, words_of
from poise.engine.thinking import Budget
from poise.llama.binding.context import PoolContext
from poise.llama.binding.mapping import give_back
from poise.llama.binding.model import Model
from poise.llama.files.cgroups import usable_threads
from poise.llama.files.memory import PoolSpec
from poise.llama.running.grammar import Grammars
from poise.llama.running.sampler import Drawn, Floats, Sampler
from poise.llama.running.store import StateStore
from poise.llama.running.threads import ThreadGovernor
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.budget import BatchShape, CostModel
from poise.scheduler.policy import CostPrior
from poise.wire.figures import StructureFigures
from poise.wire.messages import PoolInfo, PromptLogprobs, Token, TokenLogprob
from poise.wire.to_engine import SamplingParams


class LlamaRunner(AbstractContextManager["LlamaRunner"]):
    """Implements `poise.engine.ports.Runner`. Takes over the model: closing the runner closes it too."""

    def __init__(
        self,
        model: Model,
        pools: Sequence[PoolSpec],
        *,
        batch_tokens: int = 512,
        threads: int = 0,
        kv_type: str = "f16",
        adapt_threads: bool = False,
        costs: Mapping[str, CostPrior] | None = None,
        candidates_max: int = 1024,
        arena: Arena | None = None,
    ) -> None:
        """Build the pools. Raises ModelError, with everything freed again.

        A slot has the cells its spec asks for, but never more than the context the model was trained on.
        threads 0: one for each core that this process may use. adapt_threads: fewer while passes take much longer than
        `costs` say, as they do beside other busy programs. candidates_max: see `poise.llama.running.sampler`. arena: where the
        host store lies; without one in memory that ends with this process."""
        self.model = model
        self._eog = frozenset(model.vocab.eog_tokens)
        self._samplers: dict[int, Sampler] = {}
        self._grammars = Grammars(model.vocab)  # first of all: it reads the vocabulary while the pools are built
        self.prepare, self.prepared = self._grammars.prepare, self._grammars.prepared
        self._contexts: dict[str, PoolContext] = {}
        self._store = StateStore(arena)
        self._candidates_max = candidates_max
        self._costs = {spec.name: CostModel((costs or {}).get(spec.name, CostPrior())) for spec in pools}
        self._threads = threads or usable_threads()
        self._threads_most = 0
        self._governor = ThreadGovernor(self._threads) if adapt_threads else None
        try:
            for spec in pools:
                self._contexts[spec.name] = PoolContext(
                    model, spec.cut_to(model.context_train), batch_tokens=batch_tokens, threads=threads, kv_type=kv_type
                )
            for context in self._contexts.values():  # so that the first request does not pay for paging in the weights
                context.compute([Row(request_id=0, slot=0, start=0, tokens=[0], sample=True)])
                context.release(0)
            self._grammars.wait_until_usable()
        except BaseException:
            self.shutdown()
            raise

    @property
    def pools(self) -> Sequence[PoolInfo]:
        return [context.info for context in self._contexts.values()]

    @property
    def threads(self) -> int:
        threads = self._governor.threads if self._governor else self._threads
        return min(threads, self._threads_most) if self._threads_most else threads

    def limit_threads(self, most: int) -> None:
        self._threads_most = most

    def release(self) -> None:
        """A model file's pages are dropped, and those of KV cells that hold nothing: they are zeros then."""
        for context in self._contexts.values():
            context.scrub(if_room=True)
        give_back(self.model.path, [context.info.kv_bytes for context in self._contexts.values()])

    @property
    def outputs_max(self) -> int:
        """Tokens of one pass that can be drawn after, at most, in every pool."""
        return min(context.outputs_max for context in self._contexts.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all entries of the host store."""
        return self._store.n_bytes

    def cell_bytes(self, pool: str) -> int:
        """Bytes of one KV cell of the pool in the host store; an entry takes a little more (a header, positions)."""
        return self._contexts[pool].info.cell_bytes

    def slot_positions(self, pool: str, slot: int) -> int:
        """The highest position in the slot, -1 when it is empty."""
        return self._contexts[pool].last_position(slot)

    @property
    def structure(self) -> StructureFigures:
        return self._grammars.tally

    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, output: Sequence[int] = ()) -> None:
        check_known([*prompt, *output, *(token for token, _ in sampling.logit_bias)], self.model.n_vocab)
        vocab, thinking, n_vocab = self.model.vocab, sampling.thinking, self.model.n_vocab
        budget = Budget(thinking, partial(vocab.piece, special=False), output) if thinking is not None else None
        held_to, most = self._grammars.take(request_id), self._candidates_max
        self._samplers[request_id] = Sampler(sampling, prompt, n_vocab, vocab.eog_tokens, output, most, held_to, budget)

    def close(self, request_id: int) -> None:
        self._samplers.pop(request_id, None)
        self._grammars.drop(request_id)

    def apply(self, operation: kv.KvOperation) -> int:
        match operation:
            case kv.ReleaseSlot(pool, slot):
                self._contexts[pool].release(slot)
            case kv.MoveSlot(pool, source, target):
                self._contexts[pool].move(source, target)
            case kv.TrimSlot(pool, slot, n_cells):
                self._contexts[pool].truncate(slot, n_cells)
            case kv.CopySlot(pool, source, target, n_cells):
                self._contexts[pool].copy(source, target, n_cells)
            case kv.StoreSlot(pool, slot, entry, n_cells):
                return self._keep(pool, slot, entry, n_cells)
            case kv.LoadSlot(pool, slot, entry, n_cells):
                stored = self._store.get(entry, pool, n_cells)
                self._contexts[pool].load(slot, stored.state, stored.n_cells, n_cells)
            case kv.DropEntry(entry):
                self._store.drop(entry)
            case kv.ScrubPool(pool):
                self._contexts[pool].scrub()
        return 0

    def inherit(self, entries: Sequence[StoredPrefix]) -> None:
        self._store.inherit(entries)

    def _keep(self, pool: str, slot: int, entry: int, n_cells: int) -> int:
        context = self._contexts[pool]
        state = self._store.reserve(entry, pool, n_cells, context.state_size(slot, n_cells))
        try:
            context.read_into(state, slot)
        except RunnerError:
            self._store.drop(entry)
            raise
        return len(state)

    def score(self, pool: str, row: Row, targets: Sequence[int]) -> PromptLogprobs:
        context, sampler, found = self._contexts[pool], self._samplers[row.request_id], list[Drawn]()
        # Memory for all logits at once would never be used else.
        for begin in range(0, len(row.tokens), context.outputs_max):
            part = replace(row, start=row.start + begin, tokens=row.tokens[begin : begin + context.outputs_max])
            for logits, target in zip(context.compute_every(part), targets[begin:], strict=False):
                if not np.isfinite(logits.max()):
                    context.taint(row.slot)
                found.append(sampler.likelihood(target, logits))
        logprobs, top = [one.logprob or 0.0 for one in found], [one.top for one in found]
        return PromptLogprobs(row.request_id, row.start + 1, logprobs, top)

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        slots = [row.slot for row in rows]
        assert slots == sorted(set(slots)), f"rows are not in ascending slot order: {slots}"
        computed = iter(self._compute(pool, rows))
        sampled = []
        for row in rows:
            if not row.sample:
                continue
            if not row.n_guessed:
                sampled.append(self._draw(pool, row, next(computed)))
                continue
            logits = list(islice(computed, 1 + row.n_guessed))
            drawn = draw_along(row.tokens[-row.n_guessed :], partial(self._draw_from, pool, row, logits))
            if drawn.n_accepted < row.n_guessed:
                n_cells = row.start + len(row.tokens) - row.n_guessed + drawn.n_accepted
                self._contexts[pool].truncate(row.slot, n_cells)
            sampled.append(drawn)
        return sampled

    def _draw_from(self, pool: str, row: Row, logits: Sequence[Floats], i: int) -> Sampled:
        return self._draw(pool, row, logits[i])

    def _draw(self, pool: str, row: Row, logits: Floats) -> Sampled:
        began_ns = time.perf_counter_ns()
        request_id = row.request_id
        token, ends, failed = Token(request_id, NO_TOKEN), False, ""
        forced, closes, cut = tuple[Token, ...](), False, False
        try:
            drawn = self._samplers[request_id].draw(logits)
            token, ends = Token(request_id, drawn.token, drawn.logprob, drawn.top), drawn.token in self._eog
            forced, closes, cut = _forced(request_id, drawn), drawn.closes, drawn.cut
        except Exception as error:  # whatever it is, it is this row's: the others are drawn as if nothing was
            failed = words_of(error)
            if not np.isfinite(logits.max()):
                self._contexts[pool].taint(row.slot)
        return Sampled(token, ends, time.perf_counter_ns() - began_ns, failed, forced, closes, cut)

    def _compute(self, pool: str, rows: Sequence[Row]) -> list[Floats]:
        """A forward pass, with as many threads as the governor thinks right."""
        context, governor = self._contexts[pool], self._governor
        context.use_threads(self.threads)
        if governor is None:
            return context.compute(rows)
        shape = BatchShape()
        for row in rows:
            shape.add(is_prompt=len(row.tokens) > 1 + row.n_guessed, start=row.start, n_tokens=len(row.tokens))
        began_ns = time.perf_counter_ns()
        logits = context.compute(rows)
        now_ns = time.perf_counter_ns()
        if self.threads == governor.threads:  # else this says nothing of what it chose
            governor.observe((now_ns - began_ns) / 1000 / max(1.0, self._costs[pool].predict_us(shape)), now_ns)
        return logits

    def shutdown(self) -> None:
        """Free samplers, stored states (overwritten, but for those in an arena), pools and model, in this order. Later calls do
        nothing."""
        self._grammars.close()
        self._samplers.clear()
        self._store.clear()
        for context in self._contexts.values():
            context.close()
        self.model.close()

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _forced(request_id: int, drawn: Drawn) -> tuple[Token, ...]:
    """Tokens that need no draw are certain: they have the log probability 0."""
    if drawn.logprob is None:
        return tuple([Token(request_id, token) for token in drawn.forced])
    return tuple([Token(request_id, t, 0.0, [TokenLogprob(t, 0.0)] if drawn.top else []) for t in drawn.forced])
