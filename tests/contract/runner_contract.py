"""What every Runner promises, as one suite. `test_runner.py` runs it against each runner of `conftest.py`.

Greedy continuations are the instrument: a sequence whose cells were lost, mixed up or computed twice goes on differently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from threading import Event
from typing import Protocol

import msgspec
import pytest

from poise.engine.ports import NO_TOKEN, Row, Runner, RunnerError, Sampled
from poise.scheduler.planning.plan import CopySlot, DropEntry, LoadSlot, MoveSlot, ReleaseSlot, StoreSlot
from poise.wire.messages import STRUCTURE_FAILED, TokenLogprob
from poise.wire.to_engine import Grammar, SamplingParams, Thinking

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=7, ignore_eos=True)
PENALISED = SamplingParams(
    temperature=0.9, top_p=0.9, seed=-3, presence_penalty=0.4, frequency_penalty=0.6, repetition_penalty=1.3, min_output=14
)

# Beginnings of English text in SmolLM2's vocabulary; to the simulated model all ids are alike.
CAPITALS = [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 4521, 314, 11452, 30, 378, 3575, 282, 7158, 314]
STORY = [6403, 1980, 253, 655, 665, 436, 253, 1838, 8180, 617, 4161, 281, 253, 6560, 2141, 260, 3150, 30, 1963, 1194]
TEA = [2068, 919, 7188, 28, 808, 17663, 634, 913, 281, 253, 44328, 30, 3875, 1830, 253, 7188, 8727, 618, 253, 7118, 284]

PLACES = [[504, 3575, 282], [4649], [314], [7042, 30], [378, 3575], [282]]
"""What a constrained output may have, place by place."""


class InspectableRunner(Runner, Protocol):
    def slot_positions(self, pool: str, slot: int) -> int: ...

    def cell_bytes(self, pool: str) -> int: ...


@dataclass
class Subject:
    """A runner under test.

    n_comparable   tokens that must agree when the same sequence was computed in another way
    memory_of      the very memory that an entry of the host store lies in, whose items take `item_bytes` in the books
    broken         while it lasts, every operation that carries cells fails
    grammar        the runner's text of a grammar that has these tokens for the places of the output
    entries        what the test has stored and not dropped
    """

    runner: InspectableRunner
    n_comparable: int
    memory_of: Callable[[int], Collection[int]]
    item_bytes: int
    broken: Callable[[], AbstractContextManager[object]]
    grammar: Callable[[list[list[int]]], str]
    entries: list[int] = field(default_factory=list)

    def drop(self, entry: int) -> None:
        self.runner.apply(DropEntry(entry))
        self.entries.remove(entry)

    def clean_up(self) -> None:
        for entry in list(self.entries):
            self.drop(entry)
        for pool in self.runner.pools:
            for slot in range(pool.n_slots):
                self.runner.apply(ReleaseSlot(pool.name, slot, request_id=0))


class Sequence:
    """A request driven by hand, one row at a time."""

    ids = count(1)

    def __init__(
        self,
        subject: Subject,
        slot: int,
        prompt: list[int],
        sampling: SamplingParams = GREEDY,
        pool: str = "short",
        output: list[int] | None = None,
        grammar: str = "",
    ) -> None:
        """`output`: what another runner has drawn already. With a `grammar` it is constrained."""
        self.runner = subject.runner
        self.request_id = next(self.ids)
        self.pool, self.slot, self.prompt = pool, slot, prompt
        self.n_computed = 0
        self.output: list[int] = list(output or [])
        if grammar:
            self.prepare(grammar)
        self.runner.open(self.request_id, prompt, sampling, self.output)

    def row(self, n_tokens: int, *, sample: bool | None = None) -> Row:
        """The next `n_tokens` known tokens; `sample` defaults to whether they are the last."""
        known = self.prompt + self.output
        tokens = known[self.n_computed : self.n_computed + n_tokens]
        last = self.n_computed + n_tokens == len(known)
        return Row(self.request_id, self.slot, self.n_computed, tokens, last if sample is None else sample)

    def took(self, row: Row, sampled: Sampled | None) -> None:
        self.n_computed += len(row.tokens)
        if sampled is not None and not sampled.ends:
            self.output += [sampled.token.token, *(token.token for token in sampled.further)]

    def prepare(self, grammar: str) -> None:
        """Until its constraint is made."""
        made = Event()
        self.runner.prepare(self.request_id, "a", Grammar(grammar), self.output, made.set)
        while self.request_id not in [request_id for request_id, _ in self.runner.prepared()]:
            assert made.wait(30.0), "the grammar was never made"
            made.clear()

    def compute(self, n_tokens: int) -> list[Sampled]:
        row = self.row(n_tokens)
        sampled = self.runner.execute(self.pool, [row])
        self.took(row, sampled[0] if sampled else None)
        return sampled

    def greedy(self, n: int) -> list[int]:
        """The output after `n` more tokens were drawn."""
        for _ in range(n):
            self.compute(len(self.prompt) + len(self.output) - self.n_computed)
        return self.output

    def move(self, target: int) -> None:
        self.runner.apply(MoveSlot(self.pool, self.slot, target, self.request_id))
        self.slot = target

    def store(self, subject: Subject) -> int:
        """Keep the slot's state. Returns the entry."""
        entry = next(self.ids)
        assert self.runner.apply(StoreSlot(self.pool, self.slot, entry, self.n_computed)) > 0
        subject.entries.append(entry)
        return entry

    def load(self, entry: int, slot: int, n_cells: int | None = None) -> None:
        """Go on in an empty slot with an entry's first `n_cells` cells, by default as many as were computed."""
        self.slot, self.n_computed = slot, self.n_computed if n_cells is None else n_cells
        self.runner.apply(LoadSlot(self.pool, slot, entry, self.n_computed, self.request_id))

    def copy_from(self, source: Sequence, n_cells: int) -> None:
        self.runner.apply(CopySlot(self.pool, source.slot, self.slot, n_cells, self.request_id))
        self.n_computed = n_cells

    def twin(self, subject: Subject, slot: int) -> Sequence:
        """A request that stands where this one stands, but for its cells."""
        twin = Sequence(subject, slot, self.prompt, pool=self.pool)
        twin.n_computed, twin.output = self.n_computed, list(self.output)
        return twin

    def give_up_slot(self) -> None:
        self.runner.apply(ReleaseSlot(self.pool, self.slot, self.request_id))

    def release(self) -> None:
        self.give_up_slot()
        self.runner.close(self.request_id)


def together(sequences: list[Sequence], n: int) -> None:
    """Draw `n` tokens for each sequence, all in one batch at a time."""
    for _ in range(n):
        rows = [s.row(len(s.prompt) + len(s.output) - s.n_computed) for s in sequences]
        for sequence, row, sampled in zip(sequences, rows, sequences[0].runner.execute(sequences[0].pool, rows), strict=True):
            sequence.took(row, sampled)


def alone(subject: Subject, prompt: list[int], n: int) -> list[int]:
    """A greedy continuation in slot 0 of the short pool, which is empty before and after."""
    sequence = Sequence(subject, 0, prompt)
    output = sequence.greedy(n)
    sequence.release()
    return output


class RunnerContract:
    def test_how_likely_a_prompt_is_does_not_depend_on_its_chunks(self, subject: Subject) -> None:
        """Its tokens are scored as they stand, whole or in pieces, and what follows is as if they had been computed as usual."""
        plain = alone(subject, CAPITALS, 3)
        found = []
        for sizes in ((18,), (7, 1, 10)):
            scored = Sequence(subject, 0, CAPITALS, msgspec.structs.replace(GREEDY, n_prompt_logprobs=2))
            logprobs, top = list[float](), list[list[TokenLogprob]]()
            for n_tokens in sizes:
                row = scored.row(n_tokens, sample=False)
                told = subject.runner.score("short", row, CAPITALS[row.start + 1 : row.start + 1 + n_tokens])
                scored.took(row, None)
                assert (told.request_id, told.start) == (scored.request_id, row.start + 1)
                logprobs += told.logprobs
                top += told.top
            assert [len(tokens) for tokens in top] == [2] * 18
            assert all(one < 0 for one in logprobs)
            assert scored.greedy(3)[: subject.n_comparable] == plain[: subject.n_comparable]
            scored.release()
            found.append(logprobs)
        assert found[0] == pytest.approx(found[1], abs=0.05)

    @pytest.mark.parametrize("n_true", [0, 1, 2])
    def test_guesses_are_kept_as_far_as_they_come_true(self, subject: Subject, n_true: int) -> None:
        """With the token that was drawn after them; of the others no cell is left, and the text goes on as without guesses."""
        plain = alone(subject, STORY, 4)
        sequence = Sequence(subject, 0, STORY)
        sequence.compute(len(STORY))
        guesses = [*plain[1 : 1 + n_true], *[7] * (2 - n_true)]
        assert plain[1 + n_true : 2 + n_true] != [7]
        known = len(STORY) + 1
        row = Row(sequence.request_id, 0, len(STORY), [plain[0], *guesses], True, len(guesses))
        (drawn,) = subject.runner.execute("short", [row])
        assert [drawn.token.token, *(token.token for token in drawn.further)] == plain[1 : 2 + n_true]
        assert drawn.n_accepted == n_true
        assert subject.runner.slot_positions("short", 0) == known + n_true - 1
        sequence.n_computed, sequence.output = known + n_true, plain[: 2 + n_true]
        assert sequence.greedy(2)[:4] == plain

    def test_guesses_of_one_are_no_business_of_the_others(self, subject: Subject) -> None:
        """Rows with and without them in one pass, some of which draw nothing."""
        expected = [alone(subject, prompt, 3) for prompt in (CAPITALS, STORY)]
        drafting, plain, prompt = Sequence(subject, 0, CAPITALS), Sequence(subject, 1, STORY), Sequence(subject, 3, TEA)
        drafting.greedy(1)
        plain.greedy(1)
        guesses = [expected[0][1], 7]
        rows = [
            Row(drafting.request_id, 0, len(CAPITALS), [expected[0][0], *guesses], True, 2),
            plain.row(1),
            prompt.row(9, sample=False),
        ]
        first, second = subject.runner.execute("short", rows)
        assert [first.token.token, *(token.token for token in first.further)] == expected[0][1:3]
        assert (first.n_accepted, second.n_accepted) == (1, 0)
        assert second.token.token == expected[1][1]
        assert [subject.runner.slot_positions("short", slot) for slot in (0, 1, 3)] == [len(CAPITALS) + 1, len(STORY), 8]

    def test_greedy_continuation_is_deterministic(self, subject: Subject) -> None:
        """The same prompt gives the same tokens, whichever slot it is in."""
        first = alone(subject, STORY, 12)
        assert alone(subject, STORY, 12) == first
        assert Sequence(subject, 2, STORY).greedy(12) == first

    def test_different_prompts_differ(self, subject: Subject) -> None:
        """Otherwise the tests of this suite would prove nothing."""
        assert alone(subject, STORY, 8) != alone(subject, TEA, 8)

    @pytest.mark.parametrize("chunks", [[1, 18], [7, 7, 5], [16, 3], [18, 1]])
    def test_chunking_does_not_change_the_tokens(self, subject: Subject, chunks: list[int]) -> None:
        """A prompt computed in several chunks continues as one computed at once."""
        whole = alone(subject, CAPITALS, subject.n_comparable)
        sequence = Sequence(subject, 0, CAPITALS)
        for n_tokens in chunks:
            sequence.compute(n_tokens)
        assert sequence.greedy(subject.n_comparable - 1) == whole

    def test_neighbours_in_a_batch_do_not_influence_each_other(self, subject: Subject) -> None:
        """Sequences computed in one batch continue as each would alone."""
        expected = [alone(subject, prompt, subject.n_comparable) for prompt in (CAPITALS, STORY, TEA)]
        sequences = [Sequence(subject, slot, prompt) for slot, prompt in enumerate((CAPITALS, STORY, TEA))]
        together(sequences, subject.n_comparable)
        assert [sequence.output for sequence in sequences] == expected

    def test_a_chunk_and_decodes_share_a_batch(self, subject: Subject) -> None:
        """A prompt joins while others decode; nobody's tokens change."""
        expected = [alone(subject, prompt, subject.n_comparable) for prompt in (STORY, TEA)]
        decoding, joining = Sequence(subject, 0, STORY), Sequence(subject, 3, TEA)
        decoding.greedy(1)
        rows = [decoding.row(1), joining.row(9)]
        (sampled,) = subject.runner.execute("short", rows)
        decoding.took(rows[0], sampled)
        joining.took(rows[1], None)
        assert decoding.greedy(subject.n_comparable - 2) == expected[0]
        assert joining.greedy(subject.n_comparable) == expected[1]

    def test_a_released_slot_keeps_no_trace(self, subject: Subject) -> None:
        """What a slot held before does not influence its next sequence."""
        fresh = alone(subject, CAPITALS, 12)
        alone(subject, STORY * 3, 12)
        assert alone(subject, CAPITALS, 12) == fresh

    def test_a_move_carries_the_state_exactly(self, subject: Subject) -> None:
        """A sequence that is moved in the middle continues as one that stayed."""
        stayed = alone(subject, TEA, 12)
        sequence = Sequence(subject, 3, TEA)
        sequence.greedy(5)
        sequence.move(1)
        assert subject.runner.slot_positions("short", 3) == -1
        assert sequence.greedy(7) == stayed

    def test_the_source_of_a_move_is_free_for_others(self, subject: Subject) -> None:
        """Two sequences never share cells after a move."""
        expected = alone(subject, STORY, subject.n_comparable)
        moved = Sequence(subject, 2, TEA)
        moved.greedy(2)
        moved.move(0)
        newcomer = Sequence(subject, 2, STORY)
        together([moved, newcomer], subject.n_comparable)
        assert newcomer.output == expected
        assert moved.output[: subject.n_comparable] == alone_in(subject, 1, TEA, subject.n_comparable)

    def test_a_row_without_sample_gives_no_token(self, subject: Subject) -> None:
        """Only rows that ask for a token get one, in row order."""
        sequences = [Sequence(subject, slot, STORY) for slot in range(3)]
        rows = [s.row(8, sample=sample) for s, sample in zip(sequences, (True, False, True), strict=True)]
        sampled = subject.runner.execute("short", rows)
        assert [s.token.request_id for s in sampled] == [sequences[0].request_id, sequences[2].request_id]
        silent = [Sequence(subject, 3, STORY).row(8, sample=False)]
        assert subject.runner.execute("short", silent) == []

    def test_positions_follow_the_rows(self, subject: Subject) -> None:
        """A slot holds exactly the positions that were computed."""
        runner, sequence = subject.runner, Sequence(subject, 1, STORY)
        assert runner.slot_positions("short", 1) == -1
        sequence.compute(12)
        assert runner.slot_positions("short", 1) == 11
        sequence.greedy(3)
        assert runner.slot_positions("short", 1) == len(STORY) + 1
        sequence.move(0)
        assert runner.slot_positions("short", 0) == len(STORY) + 1
        sequence.release()
        assert [runner.slot_positions("short", slot) for slot in range(4)] == [-1] * 4

    def test_pools_do_not_touch_each_other(self, subject: Subject) -> None:
        """The same slot number in two pools is two slots."""
        expected = alone(subject, CAPITALS, 12)
        other = Sequence(subject, 0, STORY, pool="long")
        other.greedy(3)
        assert alone(subject, CAPITALS, 12) == expected
        assert subject.runner.slot_positions("long", 0) == len(STORY) + 1

    def test_more_than_a_slot_holds_is_an_error_for_that_batch_only(self, subject: Subject) -> None:
        """Beyond a slot's cells a batch fails as a whole; sequences that had no row in it go on as if nothing was."""
        undisturbed = alone(subject, TEA, 12)
        bystander = Sequence(subject, 1, TEA)
        bystander.greedy(4)
        filler = Sequence(subject, 0, STORY * 20)
        for _ in range(4):
            filler.compute(60)
        with pytest.raises(RunnerError):
            filler.compute(60)
        filler.release()
        assert bystander.greedy(8) == undisturbed
        assert alone(subject, STORY, 4) == alone_in(subject, 2, STORY, 4)

    def test_a_row_that_leaves_a_gap_is_an_error(self, subject: Subject) -> None:
        """Rows continue where their slot ends."""
        sequence = Sequence(subject, 0, STORY)
        sequence.compute(8)
        sequence.n_computed += 1
        with pytest.raises(RunnerError):
            sequence.compute(4)

    def test_closing_an_unknown_request_is_ignored(self, subject: Subject) -> None:
        """Closing twice, or what never was, does nothing."""
        subject.runner.close(10**9)
        sequence = Sequence(subject, 0, STORY)
        sequence.release()
        subject.runner.close(sequence.request_id)

    def test_same_seed_same_tokens(self, subject: Subject) -> None:
        """Sampling is repeatable, and a seed makes a difference."""

        def outputs(seed: int) -> list[int]:
            sequence = Sequence(subject, 0, STORY, SamplingParams(temperature=1.0, seed=seed, ignore_eos=True))
            output = sequence.greedy(12)
            sequence.release()
            return output

        assert outputs(7) == outputs(7)
        assert outputs(7) != outputs(8)

    @pytest.mark.parametrize("cut", [1, 7, 13])
    @pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
    def test_a_continuation_draws_what_the_whole_would_have(self, subject: Subject, sampling: SamplingParams, cut: int) -> None:
        """Another runner's output is gone on from: penalties, the least output and the seed's draws stand where they stood.

        The cells are computed in the same chunks as they were there, so nothing is left to rounding.
        """
        whole = Sequence(subject, 0, STORY, sampling).greedy(14)
        late = Sequence(subject, 1, STORY, sampling, output=whole[:cut])
        late.compute(len(STORY))
        while late.n_computed < len(STORY) + cut:
            late.compute(1)
        assert late.greedy(14 - cut - 1) == whole

    def test_a_continuation_may_compute_all_that_is_known_at_once(self, subject: Subject) -> None:
        """As a readmitted request does."""
        whole = alone(subject, TEA, 3 + subject.n_comparable)
        late = Sequence(subject, 1, TEA, output=whole[:3])
        assert late.greedy(subject.n_comparable) == whole

    def test_draws_do_not_depend_on_what_was_drawn_before(self, subject: Subject) -> None:
        """Nor on who else draws: the same request gives the same tokens beside others as alone."""
        expected = Sequence(subject, 0, TEA, SAMPLED).greedy(subject.n_comparable)
        beside = [Sequence(subject, 1, STORY, SAMPLED), Sequence(subject, 2, TEA, SAMPLED)]
        together(beside, subject.n_comparable)
        assert beside[1].output == expected

    @pytest.mark.parametrize("bias", [float("inf"), float("nan"), 1e308])
    def test_a_row_that_no_token_can_be_drawn_from_fails_alone(self, subject: Subject, bias: float) -> None:
        """It says so; the others of its pass draw what they would have drawn alone, and its slot serves the next one."""
        expected = [alone(subject, prompt, subject.n_comparable) for prompt in (CAPITALS, TEA)]
        sampling = SamplingParams(temperature=0.0, logit_bias=((7, bias),), ignore_eos=True)
        well = [Sequence(subject, 0, CAPITALS), Sequence(subject, 2, TEA)]
        broken = Sequence(subject, 1, STORY, sampling)
        rows = [s.row(len(s.prompt)) for s in (well[0], broken, well[1])]
        first, failed, second = subject.runner.execute("short", rows)
        assert "not numbers" in failed.failed
        assert (failed.token.request_id, failed.token.token, failed.ends) == (broken.request_id, NO_TOKEN, False)
        for sequence, row, sampled in zip(well, (rows[0], rows[2]), (first, second), strict=True):
            assert sampled.failed == ""
            sequence.took(row, sampled)
        broken.release()
        together(well, subject.n_comparable - 1)
        assert [s.output for s in well] == expected
        assert alone_in(subject, 1, TEA, subject.n_comparable) == expected[1]

    @pytest.mark.parametrize(
        ("prompt", "bias"), [([1 << 30], ()), ([5, -1], ()), ([5], ((1 << 30, 1.0),))], ids=["beyond", "below", "bias"]
    )
    def test_a_request_that_names_no_token_is_not_opened(
        self, subject: Subject, prompt: list[int], bias: tuple[tuple[int, float], ...]
    ) -> None:
        """In a pass it would fail everybody's."""
        with pytest.raises(RunnerError, match="a token that the model has not"):
            Sequence(subject, 0, prompt, SamplingParams(logit_bias=bias))

    def constrained(self, subject: Subject, slot: int, output: list[int] | None = None) -> tuple[list[int], bool]:
        """A constrained output, and whether its last draw said that this was all."""
        sequence = Sequence(subject, slot, CAPITALS, SAMPLED, output=output, grammar=subject.grammar(PLACES))
        closed = False
        while not closed:
            (sampled,) = sequence.compute(len(sequence.prompt) + len(sequence.output) - sequence.n_computed)
            closed = sampled.closes
            assert not sampled.ends
        sequence.release()
        return sequence.output, closed

    def test_an_output_follows_its_grammar(self, subject: Subject) -> None:
        """Each token is of its place, those without a choice come with the one before them, and the last draw says so."""
        output, closed = self.constrained(subject, 0)
        assert closed
        assert len(output) == len(PLACES)
        assert all(token in place for token, place in zip(output, PLACES, strict=True))

    @pytest.mark.parametrize("n_known", [1, 2, 4, 5])
    def test_a_constrained_output_goes_on_as_it_would_have(self, subject: Subject, n_known: int) -> None:
        """In another runner, also from within a forced run."""
        whole, _ = self.constrained(subject, 0)
        again, closed = self.constrained(subject, 1, whole[:n_known])
        assert (again, closed) == (whole, True)

    def test_reasoning_ends_when_its_budget_is_spent(self, subject: Subject) -> None:
        """By the tokens that end it, whoever computes it from wherever; what is said then follows from them."""
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, thinking=Thinking(3, (314, 7042)))
        free = alone(subject, STORY, 3)
        ended = Sequence(subject, 1, STORY, sampling).greedy(9)
        assert ended[:5] == [*free, 314, 7042]
        for n_known in (2, 3, 4, 5):
            late = Sequence(subject, 2, STORY, sampling, output=ended[:n_known])
            late.compute(len(STORY))
            while late.n_computed < len(STORY) + n_known:
                late.compute(1)
            assert late.greedy(9 - n_known - 1) == ended
            late.release()

    def test_a_grammar_that_is_none_fails_the_opening(self, subject: Subject) -> None:
        with pytest.raises(RunnerError, match=STRUCTURE_FAILED):
            Sequence(subject, 0, STORY, grammar="{}}")

    def test_logprobs_come_when_asked_for(self, subject: Subject) -> None:
        """Of the chosen token, and of as many of the likeliest as were asked for."""
        plain = Sequence(subject, 0, STORY).compute(len(STORY))[0].token
        assert plain.logprob is None
        assert plain.top == []
        sampling = SamplingParams(temperature=0.0, n_logprobs=3)
        token = Sequence(subject, 1, STORY, sampling).compute(len(STORY))[0].token
        assert token.logprob is not None
        assert token.logprob <= 0.0
        assert len(token.top) == 3
        assert token.top[0].token == token.token

    def test_pools_are_reported(self, subject: Subject) -> None:
        """Every pool with its shape."""
        assert [(pool.name, pool.n_slots, pool.slot_cells) for pool in subject.runner.pools] == [
            ("short", 4, 256),
            ("long", 2, 256),
        ]


def alone_in(subject: Subject, slot: int, prompt: list[int], n: int) -> list[int]:
    """As `alone`, in a slot that is free now."""
    sequence = Sequence(subject, slot, prompt)
    output = sequence.greedy(n)
    sequence.release()
    return output
