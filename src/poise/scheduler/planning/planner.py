"""One planning pass: the rules of a step, in the order in which they spend its time budget.

R1 decode first      every running interactive sequence gets its next token
R4 guaranteed share  background work that is owed compute goes next
R3 prompts           by class, then least-served tenant, then shortest remaining with ageing
R4 leftovers         background decodes and its first prompt by served cost, then its prompts, with whatever is left
R2 time budget       spent by all of the above; the first prompt of a class gets one quantum whatever is left
R5 heavy             long prompts have their own pool, and only so many of them are computed at once
R10 drafts           lone streams compute guesses of their next tokens along, where nobody else has use for the step

Where a quota allows no longer steps (`power.step_us`), rows and prompts take turns instead of R1 and the quantum.

What a suspect computes is a batch of its own: if it breaks the engine, it is alone in that, and nobody else is blamed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from poise.scheduler import admission
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.budget import BatchShape, CostModel, StepBudget, attended_cells
from poise.scheduler.planning.drafting import Drafts
from poise.scheduler.planning.plan import Batch, Chunk
from poise.scheduler.policy import LONG_POOL, DraftPolicy
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence

HEAVY_AGEING = 0.1
"""Of a heavy prompt's waiting so much counts, beside a short one's."""
HEAVY_STRETCH = 2.0
"""A chunk that a heavy prompt saved up for may take this many times the step's target."""


@dataclass(slots=True)
class PlanningPass:
    """Builds the batches of one step.

    `start` is called for each queued sequence that is given a slot, and returns what carrying its cells takes; `cached` says how
    many of a queued sequence's cells it would not have to compute."""

    books: Books
    start: Callable[[Sequence], float]
    cached: Callable[[Sequence], int]
    now_ns: int
    budget: StepBudget = field(init=False)
    target_us: int = field(init=False)
    _chunks: dict[str, dict[int, Chunk]] = field(init=False)
    _chosen: set[int] = field(init=False, default_factory=set)
    _suspects: dict[int, None] = field(init=False, default_factory=dict)
    _n_run_rows: int = field(init=False, default=0)
    """The answer of `_run_tokens`, once it was asked for."""

    def __post_init__(self) -> None:
        policy = self.books.policy
        self.target_us = self.books.power.target_us(self._target_us())
        self.budget = StepBudget(self.books.models, self.target_us, policy.batch_tokens)
        self._chunks = {name: {} for name in policy.pools}
        for request_class, running in self.books.running.items():
            for sequence in running.values():
                if sequence.is_suspect and self.books.runs(request_class):
                    self._set_apart(sequence)

    def _target_us(self) -> int:
        """The ITL target of the first class that decodes. With nobody's tokens to pace, only an arrival could be waiting."""
        books = self.books
        for request_class, policy in books.policy.classes.items():
            if books.runs(request_class) and any(sequence.is_decoding for sequence in books.running[request_class].values()):
                return policy.itl_target_us
        return books.policy.step_max_us

    def fill(self) -> tuple[Batch, ...]:
        """Apply the rules and return at most one batch for each pool, and one for each suspect."""
        self._choose()
        if self.books.policy.drafts.max_streams:
            self._draft(self.books.policy.drafts)
        return self._batches()

    def _choose(self) -> None:
        books = self.books
        if not books.power.step_us:
            self._decode(books.running[RequestClass.INTERACTIVE].values())
        has_background = books.runs(RequestClass.BACKGROUND)
        if has_background and books.background_credit_us > 0 and books.background_credit_us > self._patience_us():
            self._background_share()
        if books.power.step_us:
            self._take_turns(RequestClass.INTERACTIVE)
        else:
            self._prompts(RequestClass.INTERACTIVE, quantum=True)
        if not has_background:
            return
        self._keep_free_of_background()
        if books.power.step_us:
            if self.budget.left_us > 0 or not self._chosen:
                self._take_turns(RequestClass.BACKGROUND)
            return
        if self.budget.left_us > 0 or not self._chosen:
            self._background_decodes()
        nothing_else = not self._chosen  # then a quantum delays nobody, and without one nothing would ever advance
        if self.budget.left_us > 0 or nothing_else:
            self._prompts(RequestClass.BACKGROUND, quantum=nothing_else)

    def _draft(self, policy: DraftPolicy) -> None:
        """Rule R10: where few run, all decode and nobody waits, what is left of the step is for guesses of their tokens."""
        books = self.books
        running = [s for sequences in books.running.values() for s in sequences.values()]
        is_wanted = any(queue.n_queued for queue in books.queues.values()) or not all(s.is_decoding for s in running)
        if len(running) > policy.max_streams or is_wanted or self._suspects or books.power.step_us:
            return
        step_us = sum(books.models[pool].predict_us(shape) for pool, shape in self.budget.shapes.items())
        drafts = Drafts(self.budget, int(step_us + sum(self.budget.sampling_us.values())), len(self._chosen), policy.max_tokens)
        for sequence in running:
            chunk = self._chunks[sequence.pool].get(sequence.slot)
            if chunk is None or not chunk.sample or not sequence.n_guesses:
                continue
            request, pool, end = sequence.request, sequence.pool, chunk.start + chunk.n_tokens
            room = min(request.max_output - sequence.n_output - 1, books.policy.pools[pool].slot_cells - end)
            most, draw_us = min(sequence.n_guesses, room), int(sequence.sample_us)
            n = drafts.add(sequence.acceptance, sequence.n_matched, most, pool, end, books.models[pool], draw_us)
            self._chunks[pool][sequence.slot] = chunk._replace(n_drafted=n)

    def _take_turns(self, request_class: RequestClass) -> None:
        """Where a longer step would be cut into pieces: as many decodes as fit, who waits longest first; a prompt that has no
        room beside them comes when each of them has had a turn."""
        books, budget, running = self.books, self.budget, self.books.running[request_class]
        decoding = [s for s in running.values() if s.is_decoding]
        prompts_first = books.turns[request_class] >= len(decoding)
        if prompts_first:
            self._prompts(request_class, quantum=request_class is RequestClass.INTERACTIVE or not self._chosen)
            books.turns[request_class] = 0
        for sequence in decoding:
            if self._chosen and budget.left_us < budget.entry_us(sequence.pool) + books.models[sequence.pool].decode_us:
                break
            self._decode([sequence])
            request_id = sequence.request.request_id
            running[request_id] = running.pop(request_id)
            books.turns[request_class] += 1
        if not prompts_first:
            self._prompts(request_class, quantum=not self._chosen)

    def _set_apart(self, sequence: Sequence) -> None:
        """A suspect costs a call of its own."""
        self._suspects[sequence.request.request_id] = None
        self.budget.cap(self.budget.left_us - self.books.models[sequence.pool].fixed_us)

    def _keep_free_of_background(self) -> None:
        """The full ITL target is for interactive prompts. Background fills a step that chats wait for less far, so that its
        work alone does not bring their tokens down to the slowest pace that is allowed."""
        if any(sequence.is_decoding for sequence in self.books.running[RequestClass.INTERACTIVE].values()):
            self.budget.cap(self.budget.left_us - (1 - self.books.policy.fill_share) * self.target_us)

    def _background_decodes(self) -> None:
        """Decodes, all of them at once; but those of tenants that were served more than the first prompt's come after it.

        If decodes always came first, a reader of long prompts beside a few writers would never be served."""
        rank = self.books.served[RequestClass.BACKGROUND].rank
        decoding = [s for s in self.books.running[RequestClass.BACKGROUND].values() if s.is_decoding]
        first = self._next_prompt(RequestClass.BACKGROUND) if decoding else None
        if first is not None:
            limit = rank(first.request.account)
            later = [s for s in decoding if rank(s.request.account) > limit]
            if later:
                self._decode(s for s in decoding if rank(s.request.account) <= limit)
                if self.budget.left_us > 0:
                    self._prompts(RequestClass.BACKGROUND, quantum=False, most=1)
                if first.request.request_id not in self._chosen:
                    return  # what is left is saved for it, and cannot be spent as well
                decoding = later
        if self.budget.left_us > 0 or not self._chosen:  # a suspect's own call may be all of a short budget
            self._decode(decoding)

    def _patience_us(self) -> float:
        """How much background may be owed before it is paid ahead of interactive prompts.

        A prompt that waits for its first token is worth a delay to work that nobody watches: mostly the debt is paid from
        what is left a moment later. Beyond two steps' worth it is paid in any case, so the share holds."""
        waiting = self._next_prompt(RequestClass.INTERACTIVE) is not None
        return 2.0 * self.books.policy.classes[RequestClass.BACKGROUND].itl_target_us if waiting else 0.0

    def _decode(self, sequences: Iterable[Sequence]) -> None:
        """What each decoding sequence that has nothing yet needs for its next token. The hot path of planning: one pass, and
        no calls but for sequences that a grammar has given more than one token."""
        chosen = self._chosen
        tally = {pool: [0, 0, 0.0] for pool in self._chunks}
        for sequence in sequences:
            request, start = sequence.request, sequence.n_computed
            n_pending = sequence.n_tokens - start
            if n_pending <= 1 + sequence.n_forced and sequence.n_tokens > request.n_prompt and request.request_id not in chosen:
                n = n_pending if n_pending == 1 else self._run_tokens(n_pending)
                chosen.add(request.request_id)
                slot = sequence.slot
                self._chunks[sequence.pool][slot] = Chunk(request.request_id, slot, start, n, n == n_pending, False)
                counts = tally[sequence.pool]
                counts[0] += n
                counts[1] += start + 1 if n == 1 else attended_cells(start, n)
                counts[2] += sequence.sample_us if n == n_pending else 0.0
        for pool, (n_tokens, attended, sampling_us) in tally.items():
            if n_tokens:
                self.budget.spend_decodes(pool, int(n_tokens), int(attended), sampling_us)

    def _run_tokens(self, n_pending: int) -> int:
        """How many tokens of a forced run are computed at once.

        Its reader has them already. Where another stream draws a token in this step, that one would wait for every further row:
        then the run takes one a step, as a stream without a grammar does, and is only spared the draws."""
        if self._n_run_rows == 0:
            decoding = [s for running in self.books.running.values() for s in running.values() if s.is_decoding]
            alone = not self.books.power.step_us and all(s.n_pending > 1 for s in decoding)
            room = self.books.policy.batch_tokens // max(1, len(decoding))
            self._n_run_rows = max(1, room) if alone else 1
        return min(n_pending, self._n_run_rows)

    def _background_share(self) -> None:
        """Pay what background work is owed: decodes and one quantum of the first prompt, by least-served tenant.

        Decodes alone can be too few to absorb the share in a step of full length; then the step is cut shorter, so that
        the share holds and the next payment comes sooner."""
        books, before_us = self.books, self.budget.marginal_us
        owed_us = books.background_credit_us
        served = books.served[RequestClass.BACKGROUND]
        decoding = [s for s in books.running[RequestClass.BACKGROUND].values() if s.is_decoding]
        decoding.sort(key=lambda s: served[s.request.account])
        first = self._next_prompt(RequestClass.BACKGROUND)
        for sequence in decoding:
            if first is not None and served.rank(sequence.request.account) > served.rank(first.request.account):
                self._prompts(RequestClass.BACKGROUND, quantum=True, most=1)
                first = None
            if self.budget.marginal_us - before_us >= owed_us:
                return
            self._decode([sequence])
        if self.budget.marginal_us - before_us >= owed_us:
            return
        self._prompts(RequestClass.BACKGROUND, quantum=True, most=1)
        paid_us = self.budget.marginal_us - before_us
        if 0 < paid_us < owed_us:
            share = books.policy.classes[RequestClass.BACKGROUND].min_share
            self.budget.cap(paid_us * (1 - share) / share)

    def _prompts(self, request_class: RequestClass, *, quantum: bool, most: int = 1 << 20) -> None:
        """Chunks of prompts in order, until the budget is spent. With `quantum`, the first one gets a quantum anyway."""
        for _ in range(most):
            sequence = self._next_prompt(request_class)
            if sequence is None:
                return
            start = sequence.n_computed if sequence.slot >= 0 else self.cached(sequence)
            n_tokens = self._chunk_tokens(sequence, start, quantum)
            if n_tokens == 0:
                return
            if sequence.slot < 0:
                if sequence.is_suspect:
                    self._set_apart(sequence)
                self.budget.cap(self.budget.left_us - self.start(sequence))
                assert sequence.n_computed == start, f"{sequence} got other cells than foreseen"
            self._add_prompt(sequence, n_tokens)
            quantum = False

    def _next_prompt(self, request_class: RequestClass) -> Sequence | None:
        """The prompt that comes first: one already in a slot, or a waiting one that may take a slot now."""
        served = self.books.served[request_class]
        best: Sequence | None = self._first_waiting(request_class)
        rank = (served.rank(best.request.account), self._order(best), best.request.request_id) if best else None
        for request_id, sequence in self.books.running[request_class].items():
            if sequence.is_decoding or request_id in self._chosen:
                continue
            done_us = self.books.models[sequence.pool].chunk_us(is_prompt=True, start=0, n_tokens=sequence.n_computed)
            candidate = (served.rank(sequence.request.account), self._order(sequence) - done_us, request_id)
            if rank is None or candidate < rank:
                best, rank = sequence, candidate
        return best

    def _first_waiting(self, request_class: RequestClass) -> Sequence | None:
        rank, limits = self.books.served[request_class].rank, self.books.limits[request_class]
        if not self.books.has_rows(request_class):
            return None
        heads = [
            self.books.first_waiting(request_class, name, heavy=heavy)
            for heavy in ((False,) if self.books.rivals(request_class) else (False, True))
            for name, pool in self.books.pools.items()
            if pool.may_take(request_class, admission.slots_max(self.books.policy.pools, name, limits))
        ]
        found = (head for head in heads if head is not None)
        return min(found, key=lambda head: (rank(head.request.account), self._order(head)), default=None)

    def _order(self, sequence: Sequence) -> float:
        """Lower goes first; to be compared with others' of this moment only. A heavy prompt has waited long by nature: its time
        counts a tenth of others', or the last seconds of one would hold up every short turn that comes meanwhile."""
        if not sequence.heavy:
            return sequence.order_key
        waited_us = (self.now_ns - sequence.arrived_ns) / 1000
        return sequence.order_key + (1 - HEAVY_AGEING) * self.books.policy.ageing * waited_us

    def _chunk_tokens(self, sequence: Sequence, start: int, quantum: bool) -> int:
        """Tokens from `start` on that go into this step; 0 when the budget is spent."""
        pool, pending = sequence.pool, sequence.n_tokens - start
        least, limited = min(self.books.policy.quantum_tokens, pending), self.books.power.step_us > 0
        if limited:
            model = self.books.models[pool]
            least = min(least, max(1, model.prompt_tokens_within(self.target_us - model.fixed_us, start)))
        room = min(pending, self.budget.tokens_left[pool])
        if room < least:
            return 0
        left_us = self.budget.left_us - self.budget.entry_us(pool)
        if sequence.request.scores:
            left_us /= 2  # the logits of each token, and what is made of them, cost up to as much again
        if not limited and pool == LONG_POOL and (saved := self._heavy_chunk(start, pending, left_us)) is not None:
            return min(saved, room)
        n_tokens = min(room, self.books.models[pool].prompt_tokens_within(left_us, start))
        if n_tokens < least:
            return least if quantum or (not limited and self._saved_quantum(sequence, start, least, left_us)) else 0
        if not limited and pending - n_tokens < least and pending <= room:  # a crumb left over would cost the first token a step
            return pending
        return n_tokens

    def _saved_quantum(self, sequence: Sequence, start: int, n_tokens: int, left_us: float) -> bool:
        """Rule R2's other saving: where steps never leave enough for a quantum of a background prompt, it adds up."""
        if sequence.request_class is not RequestClass.BACKGROUND:
            return False
        books = self.books
        price = books.models[sequence.pool].chunk_us(is_prompt=True, start=start, n_tokens=n_tokens)
        if left_us + books.quantum_saved_us < price:
            books.quantum_saved_us += max(0.0, left_us)
            return False
        books.quantum_saved_us = 0.0
        return True

    def _heavy_chunk(self, start: int, pending: int, left_us: float) -> int | None:
        """Rule R2's saving: where larger chunks are cheaper per token, a heavy prompt skips steps to pay for one.

        Returns the chunk to run, 0 to save, or None where the ordinary rule serves."""
        books = self.books
        wanted = min(books.policy.chunk_tokens.get(LONG_POOL, 0), pending)
        if wanted <= books.policy.quantum_tokens:
            return None
        model = books.models[LONG_POOL]
        price = model.chunk_us(is_prompt=True, start=start, n_tokens=wanted)
        if price <= left_us or price > HEAVY_STRETCH * self.target_us:
            return None
        if price <= left_us + books.heavy_saved_us or not self._chosen:
            books.heavy_saved_us = 0.0
            return wanted
        books.heavy_saved_us += max(left_us, 0.1 * self.target_us)
        return 0

    def _add_prompt(self, sequence: Sequence, n_tokens: int) -> None:
        request_id, pool, start = sequence.request.request_id, sequence.pool, sequence.n_computed
        if sequence.is_decoding:  # it comes back from the host store
            self.budget.spend_decodes(pool, n_tokens, attended_cells(start, n_tokens), sequence.sample_us)
        else:
            self.budget.spend_prompt(pool, start, n_tokens)
        self._chosen.add(request_id)
        slot, sample = sequence.slot, n_tokens == sequence.n_pending
        self._chunks[pool][slot] = Chunk(request_id, slot, start, n_tokens, sample, not sequence.is_decoding)

    def _batches(self) -> tuple[Batch, ...]:
        batches = []
        for pool, chunks in self._chunks.items():
            ordered = [chunks[slot] for slot in sorted(chunks)]
            apart = [[c] for c in ordered if c.request_id in self._suspects] if self._suspects else []
            together = [c for c in ordered if c.request_id not in self._suspects] if apart else ordered
            for group in (together, *apart):
                if group:
                    shape = shape_of(group) if apart else self.budget.shapes[pool]
                    sampling_us = self._sampling_us(group) if apart else self.budget.sampling_us[pool]
                    predicted_us = self.books.models[pool].predict_us(shape) + sampling_us
                    batches.append(Batch(pool, tuple(group), int(predicted_us)))
        return tuple(batches)

    def _sampling_us(self, chunks: Iterable[Chunk]) -> float:
        """What drawing tokens takes after a pass over these chunks."""
        running = {i: s for sequences in self.books.running.values() for i, s in sequences.items()}
        return sum(running[chunk.request_id].sample_us for chunk in chunks if chunk.sample)


def shape_of(chunks: Iterable[Chunk]) -> BatchShape:
    shape = BatchShape()
    for chunk in chunks:
        shape.add(is_prompt=chunk.is_prompt, start=chunk.start, n_tokens=chunk.n_computed)
    return shape


def batch_shares(chunks: tuple[Chunk, ...], model: CostModel) -> list[float]:
    """Each chunk's part in its batch's cost, by the cost model; at least a trace, so that no work is free."""
    return [max(1.0, model.chunk_us(is_prompt=c.is_prompt, start=c.start, n_tokens=c.n_computed)) for c in chunks]
