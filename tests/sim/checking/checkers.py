"""Invariants that need history, checked after every simulated step. `tests.scheduler.books` sees one moment; this sees the run.

2   an ended request is in no plan any more (that it ends once is the witness's to see)
3   the scheduler's books, the runner's real cells and a third account (`mirror`) agree
5   while something runs, some request gets further than it ever was within PROGRESS_STEPS steps
6   an interactive sequence that decodes misses at most one step at a time
7   an account that waits is not further from its share than docs/scheduler.md says (in `shares`)
8   a sequence loses its slot at most `preemptions_max` times, and computes something between two times; it outgrows its slot
    less often than there are pools
11  when no request is live, no slot is held and no cell in use
12  cells of one tenant never reach another (in `mirror`; declared templates excepted)
13  guesses are computed only where few run, all of these decode, nobody waits and the step has time for them; and none beyond a
    slot's cells or what a request may have of output"""

from collections.abc import Mapping
from dataclasses import dataclass

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.planning.plan import StepPlan, StepResult
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.power import PowerLimits
from poise.scheduler.request import SUSPECT_TOKENS, PreemptionReason, Queued, Request, RequestClass
from poise.scheduler.snapshot import Snapshot
from poise.wire import messages as wire
from poise.wire.changes import ChangeKind
from tests.sim.checking.mirror import Mirror, RealCells
from tests.sim.checking.shares import FairShares

PROGRESS_STEPS = 50
"""Steps that may pass while nothing is computed that was not there before: cells are carried to and fro."""


@dataclass(slots=True)
class _Track:
    """What the plans say of one accepted request."""

    request: Request
    interactive: bool
    n_tokens: int
    n_computed: int = 0
    furthest: int = 0
    running: bool = False
    n_missed: int = 0
    n_preempted: int = 0
    n_outgrown: int = 0
    computed_since: bool = True
    """A chunk was computed since its slot was taken away last."""
    held: bool = False
    """An operator paused it, or its reader is behind; what follows until it goes on is not the scheduler's choice."""

    @property
    def is_decoding(self) -> bool:
        return self.running and self.n_tokens > self.request.n_prompt and self.n_computed == self.n_tokens - 1


class Checkers:
    """Is called with what the journal records and what the engine sends; `after_step` draws the conclusions."""

    def __init__(self, policy: SchedulerPolicy, real: RealCells, served: Mapping[RequestClass, ServedCost] | None = None) -> None:
        """`served`: the scheduler's counters by class; without them invariant 7 is not checked."""
        self.shares = FairShares(policy, served or {})
        self.mirror = Mirror()
        self._policy = policy
        self._real = real
        self._tracks: dict[int, _Track] = {}
        self._last: tuple[StepPlan, StepResult] | None = None
        self._plan: StepPlan | None = None
        self._n_in_place = 0
        self._resting = False
        self._is_short = False
        """Steps are limited to so short a time that not every row is in each."""

    def recorded(self, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        """An entry of the journal, as it is made."""
        match kind, values:
            case "add", (Request() as request, Queued()):
                interactive = request.request_class is RequestClass.INTERACTIVE
                self._tracks[request.request_id] = _Track(request, interactive, request.n_known)
                self.mirror.add(request.request_id, request.tenant)
                self.shares.added(request)
            case "rest", _:
                self._resting = True
            case "limit", (PowerLimits() as limits,):
                self._is_short = limits.step_us > 0
                for track in self._tracks.values():
                    track.n_missed = 0
            case "retract", (template,):  # What computes the template ends with it, and nothing is sent.
                for request_id in [i for i, track in self._tracks.items() if track.request.pins == template]:
                    self._ended(request_id)
            case "plan", (StepPlan() as plan,):
                self._resting, self._plan = False, plan
                self._check_drafts(plan)
                for batch in plan.batches:
                    for chunk in batch.chunks:
                        assert chunk.request_id in self._tracks, f"{chunk}: it has ended (invariant 2)"
            case "result", (StepResult() as result,):
                assert self._plan is not None, "a result without its plan"
                self.mirror.carry_out(self._plan, result)
                self._last, self._plan = (self._plan, result), None
            case (("plan" | "result"), _):
                raise AssertionError(f"no {kind}: {values}")

    def heard(self, message: wire.ToGateway) -> None:
        """A message of the engine. Changes and ends of one step come after its plan and result."""
        if not isinstance(message, wire.Step):
            return
        for change in message.changes:
            self._changed(self._tracks[change.request_id], change.what, change.why)
        for finish in message.finishes:
            self._ended(finish.request_id, finish.served_us)

    def after_step(self) -> None:
        """The engine has finished a turn of its loop."""
        if self._last is not None:
            plan, result = self._last
            self._last = None
            self._advance(plan, result)
            self.shares.after_step(plan)
        self.mirror.compare(self._real)

    def compare_books(self, snapshot: Snapshot) -> None:
        """Assert that the scheduler's books are right, and clean when nothing is live."""
        for name, books in snapshot.pools.items():
            used = self.mirror.used_by(name, self._tracks)
            assert books.cells_used == used, f"{name}: the books say {books.cells_used} cells, in use are {used}"
        n_bytes = self._real.stored_bytes
        stored = self.mirror.stored_cells()
        expected = sum(self._policy.pools[pool].cell_bytes * n_cells for pool, n_cells in stored.items())
        assert n_bytes == expected, f"the host store has {n_bytes} bytes, not {expected}"
        if self._resting:  # Else operations may be on their way that the books know of already.
            in_books = sum(snapshot.store.bytes_by_purpose.values())
            assert in_books == n_bytes, f"the books say {in_books} bytes in the host store, there are {n_bytes}"
        if not self._tracks:
            for name, books in snapshot.pools.items():
                is_clean = books.slots_held == books.cells_used == 0
                assert is_clean, f"{name}: nothing is live, {books.slots_held} slots held"
            self.mirror.compare_empty(self._real, {name: books.slots for name, books in snapshot.pools.items()})

    @property
    def is_idle(self) -> bool:
        return not self._tracks

    def _changed(self, track: _Track, what: str, why: str) -> None:
        request_id = track.request.request_id
        match what:
            case ChangeKind.PAUSE | ChangeKind.STALL:
                track.running, track.held = False, True
            case ChangeKind.RESUME:
                track.running, track.held = True, False
            case ChangeKind.DOWNGRADE:
                track.interactive = False
                self.shares.downgraded(request_id)
            case ChangeKind.SWAP | ChangeKind.DROP:
                track.running = False
                if what == ChangeKind.DROP:
                    track.n_computed = track.furthest = 0  # It computes again; rule 8 bounds how often.
                if why == PreemptionReason.POWER:  # Nor is this anybody's turn.
                    return
                if why == PreemptionReason.OUTGROWN:  # Nobody took its slot.
                    track.n_outgrown += 1
                    assert track.n_outgrown < len(self._policy.pools), f"request {request_id} outgrew every slot"
                    return
                if track.held:
                    return
                track.n_preempted += 1
                most, n = self._policy.preemptions_max, track.n_preempted
                assert n <= most, f"request {request_id} lost its slot {n} times; most: {most}"
                assert track.computed_since, f"request {request_id} lost its slot twice and computed nothing in between"
                track.computed_since = False

    def _ended(self, request_id: int, served_us: int = 0) -> None:
        del self._tracks[request_id]
        self.mirror.forget(request_id)
        self.shares.ended(request_id, served_us)

    def _advance(self, plan: StepPlan, result: StepResult) -> None:
        """Invariants 5 and 6 over one step, and where each of its sequences stands after it."""
        planned: dict[int, None] = {}
        internal: list[int] = []
        got_further = False
        for batch, batch_result in zip(plan.batches, result.batches, strict=True):
            accepted = {request_id: n_accepted for request_id, _, n_accepted in batch_result.drafted}
            for chunk in batch.chunks:
                planned[chunk.request_id] = None
                is_lost = chunk.request_id in result.lost
                if chunk.request_id < 0 and not is_lost and (chunk.sample or batch_result.failed):
                    internal.append(chunk.request_id)
                track = self._tracks.get(chunk.request_id)
                if track is None or batch_result.failed or is_lost:
                    got_further = True  # It ended in this step, or starts again for no fault of the scheduler.
                    continue
                track.running = track.computed_since = True
                track.held = False
                track.n_computed = chunk.start + chunk.n_tokens + accepted.get(chunk.request_id, 0)
                if chunk.sample:
                    track.n_tokens += 1 + accepted.get(chunk.request_id, 0)
                if track.n_tokens + track.n_computed > track.furthest:
                    track.furthest = track.n_tokens + track.n_computed
                    got_further = True
        for request_id in internal:  # What the engine asked of itself ends with its only token or a failure, unsent.
            self._ended(request_id)
        for request_id in result.lost:
            if (track := self._tracks.get(request_id)) is not None:
                track.running, track.n_computed, track.furthest = False, 0, 0
        if plan.batches:
            self._check_decodes(planned)
        self._n_in_place = 0 if got_further else self._n_in_place + 1
        assert self._n_in_place < PROGRESS_STEPS, f"{self._n_in_place} steps and nobody got any further (invariant 5)"

    def _check_drafts(self, plan: StepPlan) -> None:
        drafting = [(batch.pool, chunk) for batch in plan.batches for chunk in batch.chunks if chunk.n_drafted]
        if not drafting:
            return
        policy, tracks = self._policy, [track for track in self._tracks.values() if not track.held]
        assert len(tracks) <= policy.drafts.max_streams, f"{len(tracks)} are there, and some draft (invariant 13)"
        decoding = {chunk.request_id for batch in plan.batches for chunk in batch.chunks if not chunk.is_prompt}
        late = [t.request.request_id for t in tracks if not (t.is_decoding or t.request.request_id in decoding)]
        assert not late, f"drafts while requests {late} wait or have a prompt (invariant 13)"
        assert sum(chunk.n_drafted for _, chunk in drafting) <= policy.drafts.max_tokens, f"{drafting} (invariant 13)"
        first = RequestClass.INTERACTIVE if any(track.interactive for track in tracks) else RequestClass.BACKGROUND
        predicted_us = sum(batch.predicted_us for batch in plan.batches)
        assert predicted_us <= policy.classes[first].itl_target_us, f"drafts make a step of {predicted_us} us (invariant 13)"
        for pool, chunk in drafting:
            request = self._tracks[chunk.request_id].request
            assert chunk.start + chunk.n_computed <= policy.pools[pool].slot_cells, f"{chunk}: beyond its slot (invariant 13)"
            n_output = chunk.start + chunk.n_computed + 1 - request.n_prompt
            assert n_output <= request.max_output, f"{chunk}: beyond its output (invariant 13)"
            assert not request.suspect or chunk.start >= request.n_known + SUSPECT_TOKENS - 1, f"{chunk}: a suspect drafts"

    def _check_decodes(self, planned: dict[int, None]) -> None:
        for request_id, track in self._tracks.items():
            if request_id in planned or not (track.interactive and track.is_decoding):
                track.n_missed = 0
                continue
            track.n_missed += 1
            # Where steps must be short, rows and prompts take turns.
            most = 2 * len(self._tracks) if self._is_short else 1
            assert track.n_missed <= most, f"request {request_id} decodes and was left out of two steps (invariant 6)"
