"""What every Runner promises about KV state that is kept: stored, loaded, copied, cut, dropped. See `runner_contract.py`.

A state that was restored is the same bit for bit, so a sequence goes on exactly as if nothing had been: `LONG_RUN` tokens are
compared. Where cells were computed in another way than in the reference, only the first `n_comparable` must agree.
"""

from __future__ import annotations

import pytest

from poise.engine.ports import RunnerError
from poise.scheduler.planning.plan import (
    CopySlot,
    DropEntry,
    KvOperation,
    LoadSlot,
    MoveSlot,
    ReleaseSlot,
    ScrubPool,
    StoreSlot,
    TrimSlot,
)
from tests.contract.runner_contract import CAPITALS, STORY, TEA, Sequence, Subject, alone, alone_in

LONG_RUN = 25


class KvContract:
    def test_a_stored_sequence_goes_on_in_another_slot(self, subject: Subject) -> None:
        """Stored in the middle, its slot given up, loaded elsewhere: not a token differs."""
        stayed = alone(subject, TEA, LONG_RUN)
        sequence = Sequence(subject, 3, TEA)
        sequence.greedy(5)
        entry = sequence.store(subject)
        sequence.give_up_slot()
        sequence.load(entry, slot=1)
        assert subject.runner.slot_positions("short", 1) == sequence.n_computed - 1
        assert sequence.greedy(LONG_RUN - 5) == stayed

    def test_storing_leaves_the_slot_as_it_is(self, subject: Subject) -> None:
        """The sequence may go on at once; its entry stays behind, and whoever loads it goes on from there."""
        stayed = alone(subject, STORY, LONG_RUN)
        sequence = Sequence(subject, 0, STORY)
        sequence.greedy(5)
        entry, twin = sequence.store(subject), sequence.twin(subject, slot=2)
        assert sequence.greedy(LONG_RUN - 5) == stayed
        twin.load(entry, slot=2)
        assert twin.greedy(LONG_RUN - 5) == stayed

    def test_a_pause_in_place_changes_nothing(self, subject: Subject) -> None:
        """While others compute, a sequence that has no rows stands still."""
        stayed = alone(subject, TEA, LONG_RUN)
        paused, other = Sequence(subject, 1, TEA), Sequence(subject, 0, STORY)
        paused.greedy(5)
        other.greedy(6)
        assert paused.greedy(LONG_RUN - 5) == stayed

    def test_an_entry_outlives_the_reuse_of_its_slot(self, subject: Subject) -> None:
        """The copy is a copy: neither others in the slot it came from nor those who go on from it change it."""
        stayed = alone(subject, CAPITALS, LONG_RUN)
        sequence = Sequence(subject, 2, CAPITALS)
        sequence.greedy(5)
        entry = sequence.store(subject)
        sequence.give_up_slot()
        for _ in range(2):
            other = Sequence(subject, 2, STORY)
            other.greedy(6)
            other.move(0)
            other.release()
            twin = sequence.twin(subject, slot=2)
            twin.load(entry, slot=2)
            assert twin.greedy(LONG_RUN - 5) == stayed
            twin.release()

    def test_a_part_of_an_entry_can_be_loaded(self, subject: Subject) -> None:
        """The first cells of an entry, and the rest computed again."""
        expected = alone(subject, TEA, subject.n_comparable)
        sequence = Sequence(subject, 0, TEA)
        sequence.greedy(5)
        entry = sequence.store(subject)
        late = Sequence(subject, 2, TEA)
        late.load(entry, slot=2, n_cells=12)
        assert subject.runner.slot_positions("short", 2) == 11
        assert late.greedy(subject.n_comparable) == expected

    def test_another_prompt_goes_on_from_a_part_of_an_entry(self, subject: Subject) -> None:
        """Of what stood behind the part nothing is left."""
        prompt = CAPITALS[:8] + TEA
        expected = alone(subject, prompt, subject.n_comparable)
        sequence = Sequence(subject, 0, CAPITALS)
        sequence.greedy(1)
        entry = sequence.store(subject)
        other = Sequence(subject, 1, prompt)
        other.load(entry, slot=1, n_cells=8)
        assert other.greedy(subject.n_comparable) == expected

    def test_a_copy_leaves_its_source(self, subject: Subject) -> None:
        """Both go on as the one would have, and neither sees the other."""
        stayed = alone(subject, TEA, LONG_RUN)
        source = Sequence(subject, 1, TEA)
        source.greedy(5)
        twin = source.twin(subject, slot=3)
        twin.copy_from(source, source.n_computed)
        source.greedy(3)
        assert twin.greedy(LONG_RUN - 5) == stayed
        assert source.greedy(LONG_RUN - 8) == stayed

    def test_a_part_of_a_slot_can_be_copied(self, subject: Subject) -> None:
        """Another prompt goes on from a common beginning, and the source from its end."""
        prompt = STORY[:10] + CAPITALS
        expected, stayed = alone(subject, prompt, subject.n_comparable), alone(subject, STORY, LONG_RUN)
        source = Sequence(subject, 0, STORY)
        source.greedy(2)
        other = Sequence(subject, 3, prompt)
        other.copy_from(source, 10)
        assert subject.runner.slot_positions("short", 3) == 9
        assert other.greedy(subject.n_comparable) == expected
        assert source.greedy(LONG_RUN - 2) == stayed

    @pytest.mark.parametrize("n_cells", [0, 1, 10, 20])
    def test_a_slot_can_be_cut_and_computed_on(self, subject: Subject, n_cells: int) -> None:
        """What stood behind the cut is as if it had never been."""
        prompt = STORY[:n_cells] + TEA
        expected = alone(subject, prompt, subject.n_comparable)
        first = Sequence(subject, 1, STORY)
        first.greedy(6)
        subject.runner.apply(TrimSlot("short", 1, n_cells))
        assert subject.runner.slot_positions("short", 1) == n_cells - 1
        second = Sequence(subject, 1, prompt)
        second.n_computed = n_cells
        assert second.greedy(subject.n_comparable) == expected

    def test_a_dropped_entry_leaves_nothing_in_memory(self, subject: Subject) -> None:
        """Whoever gets the memory next finds no trace of the tenant."""
        sequence = Sequence(subject, 0, STORY)
        sequence.greedy(2)
        dropped, kept = sequence.store(subject), sequence.store(subject)
        memory = subject.memory_of(dropped)
        assert any(memory)
        subject.drop(dropped)
        assert not any(memory)
        assert any(subject.memory_of(kept))

    def test_a_scrub_leaves_what_slots_and_entries_hold(self, subject: Subject) -> None:
        """Everything goes on exactly, in this pool and the other; released slots can be used as before."""
        stayed, told = alone(subject, TEA, LONG_RUN), alone(subject, STORY, LONG_RUN)
        first, second, other = (Sequence(subject, slot, TEA, pool=p) for slot, p in ((0, "short"), (2, "short"), (1, "long")))
        gone = Sequence(subject, 1, CAPITALS)
        for sequence in (first, second, other, gone):
            sequence.greedy(5)
        entry = first.store(subject)
        gone.release()
        beside = list(other.output)
        assert subject.runner.apply(ScrubPool("short")) == 0
        assert [subject.runner.slot_positions("short", slot) for slot in range(4)] == [24, -1, 24, -1]
        assert first.greedy(LONG_RUN - 5) == stayed
        assert second.greedy(LONG_RUN - 5) == stayed
        assert Sequence(subject, 1, STORY).greedy(LONG_RUN) == told
        assert other.greedy(3)[:5] == beside
        twin = Sequence(subject, 3, TEA, output=stayed[:5])
        twin.n_computed = 25
        twin.load(entry, slot=3)
        assert twin.greedy(LONG_RUN - 5) == stayed

    def test_an_empty_pool_can_be_scrubbed(self, subject: Subject) -> None:
        """There is nothing to keep."""
        expected = alone(subject, TEA, 12)
        subject.runner.apply(ScrubPool("short"))
        assert alone(subject, TEA, 12) == expected

    def test_the_books_are_exact(self, subject: Subject) -> None:
        """Bytes come with a StoreSlot, go with its DropEntry, and nothing else changes them."""
        runner = subject.runner
        sequence = Sequence(subject, 0, STORY)
        sequence.greedy(3)
        per_cell = runner.cell_bytes("short")
        assert runner.stored_bytes == 0
        first = runner.apply(StoreSlot("short", 0, 901, sequence.n_computed))
        assert first == runner.stored_bytes == len(subject.memory_of(901)) * subject.item_bytes
        assert sequence.n_computed * per_cell <= first <= sequence.n_computed * per_cell * 1.01 + 4096
        sequence.greedy(4)
        second = runner.apply(StoreSlot("short", 0, 902, sequence.n_computed))
        others: list[KvOperation] = [
            LoadSlot("short", 1, 901, 7, 1),
            CopySlot("short", 0, 2, 9, 2),
            MoveSlot("short", 2, 3, 2),
            TrimSlot("short", 3, 4),
            ReleaseSlot("short", 0, 3),
        ]
        for operation in others:
            assert runner.apply(operation) == 0
            assert runner.stored_bytes == first + second
        assert [runner.slot_positions("short", slot) for slot in range(4)] == [-1, 6, -1, 3]
        assert runner.apply(DropEntry(901)) == 0
        assert runner.stored_bytes == second
        runner.apply(DropEntry(902))
        assert runner.stored_bytes == 0

    def test_pools_tell_what_a_cell_takes(self, subject: Subject) -> None:
        """In their description, if they know."""
        for pool in subject.runner.pools:
            assert pool.cell_bytes in (subject.runner.cell_bytes(pool.name), 0)

    def test_an_entry_stays_in_its_pool(self, subject: Subject) -> None:
        """llama.cpp refuses a state from a pool with another number of slots; asking for it is a mistake."""
        sequence = Sequence(subject, 0, STORY)
        sequence.greedy(1)
        entry = sequence.store(subject)
        with pytest.raises(AssertionError, match=r"pool short"):
            subject.runner.apply(LoadSlot("long", 0, entry, 4, 1))
        assert subject.runner.slot_positions("long", 0) == -1

    @pytest.mark.parametrize(
        ("operation", "words"),
        [
            (StoreSlot("short", 0, 900, 20), "already"),
            (StoreSlot("short", 0, 1, 19), "holds 20 cells"),
            (StoreSlot("short", 1, 1, 0), "holds 0 cells"),
            (LoadSlot("short", 0, 900, 20, 1), "not empty"),
            (LoadSlot("short", 1, 900, 21, 1), "holds 20 cells"),
            (LoadSlot("short", 1, 900, 0, 1), "holds 20 cells"),
            (LoadSlot("short", 1, 1, 20, 1), "no entry 1"),
            (CopySlot("short", 0, 0, 20, 1), "not empty"),
            (CopySlot("short", 0, 1, 21, 1), "holds 20 cells"),
            (CopySlot("short", 1, 2, 1, 1), "holds 0 cells"),
            (MoveSlot("short", 1, 0, 1), "not empty"),
            (TrimSlot("short", 0, 21), "holds 20 cells"),
            (DropEntry(1), "no entry 1"),
        ],
        ids=str,
    )
    def test_a_mistake_in_the_books_is_noticed(self, subject: Subject, operation: KvOperation, words: str) -> None:
        """An operation that cannot be meant is a bug of whoever planned it, and changes nothing."""
        sequence = Sequence(subject, 0, STORY)
        sequence.compute(len(STORY))
        subject.runner.apply(StoreSlot("short", 0, 900, len(STORY)))
        subject.entries.append(900)
        stored = subject.runner.stored_bytes
        with pytest.raises(AssertionError, match=words):
            subject.runner.apply(operation)
        assert subject.runner.stored_bytes == stored
        assert [subject.runner.slot_positions("short", slot) for slot in range(4)] == [19, -1, -1, -1]

    @pytest.mark.parametrize(
        ("operation", "left"),
        [
            (StoreSlot("short", 0, 901, 20), [19, -1]),
            (LoadSlot("short", 1, 900, 20, 1), [19, -1]),
            (CopySlot("short", 0, 1, 20, 1), [19, -1]),
            (MoveSlot("short", 0, 1, 1), [-1, -1]),
        ],
        ids=str,
    )
    def test_a_failure_leaves_what_was_promised(self, subject: Subject, operation: KvOperation, left: list[int]) -> None:
        """No entry, an empty target, a move's source empty too; the entries and slots beside it go on."""
        stayed = alone(subject, TEA, 12)
        bystander, sequence = Sequence(subject, 3, TEA), Sequence(subject, 0, STORY)
        bystander.greedy(4)
        sequence.compute(len(STORY))
        subject.runner.apply(StoreSlot("short", 0, 900, len(STORY)))
        subject.entries.append(900)
        stored = subject.runner.stored_bytes
        with subject.broken(), pytest.raises(RunnerError):
            subject.runner.apply(operation)
        assert subject.runner.stored_bytes == stored
        assert [subject.runner.slot_positions("short", slot) for slot in (0, 1)] == left
        assert bystander.greedy(8) == stayed
        again = sequence.twin(subject, slot=1)
        again.load(900, slot=1)
        assert again.greedy(7) == alone_in(subject, 2, STORY, 8)
