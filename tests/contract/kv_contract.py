"""What every Runner promises about the cells it stores, loads, copies and trims; the other half of `runner_contract`.

Where a sequence is computed in the same rows before and after, its tokens must be the same to the last one, on the real model
too: a state that was carried is carried bit by bit. Where some of its tokens are computed again in other rows, the order of
floating-point sums differs, and `Subject.n_comparable` tokens must agree.
"""

from __future__ import annotations

import pytest

from poise.scheduler.plan import CopySlot, DropEntry, KvOperation, LoadSlot, ReleaseSlot, StoreSlot, TrimSlot
from tests.contract.runner_contract import CAPITALS, STORY, TEA, Sequence, Subject, alone, alone_in, together

EXACT = 24
"""Tokens of a continuation that must be the same, one by one."""
ENTRY = 7


class KvContract:
    @pytest.fixture(autouse=True)
    def _nothing_stays_stored(self, subject: Subject) -> None:
        """Each test drops what it has stored."""
        assert subject.runner.stored_bytes == 0

    def test_a_stored_state_goes_on_exactly_in_another_slot(self, subject: Subject) -> None:
        """Out, its slot emptied, and in again elsewhere: as if it had never been away."""
        stayed = alone(subject, STORY, EXACT)
        sequence = Sequence(subject, 0, STORY)
        sequence.greedy(4)
        sequence.store(ENTRY)
        sequence.vacate()
        assert subject.runner.slot_positions("short", 0) == -1
        sequence.load(ENTRY, slot=3)
        assert subject.runner.slot_positions("short", 3) == len(STORY) + 2
        assert sequence.greedy(EXACT - 4) == stayed
        drop(subject, ENTRY)

    def test_a_sequence_in_the_middle_of_its_prompt_goes_on_exactly(self, subject: Subject) -> None:
        """Swapped out between two chunks, before it has given a token."""
        stayed = Sequence(subject, 1, TEA)
        stayed.compute(9)
        expected = stayed.greedy(EXACT)
        stayed.release()
        sequence = Sequence(subject, 1, TEA)
        sequence.compute(9)
        sequence.store(ENTRY)
        sequence.vacate()
        sequence.load(ENTRY, slot=0)
        assert sequence.greedy(EXACT) == expected
        drop(subject, ENTRY)

    def test_a_paused_sequence_goes_on_exactly_after_others_ran(self, subject: Subject) -> None:
        """In its slot, while its neighbours compute prompts, decode and leave."""
        stayed = alone(subject, TEA, EXACT)
        paused = Sequence(subject, 1, TEA)
        paused.greedy(5)
        others = [Sequence(subject, 0, STORY), Sequence(subject, 2, CAPITALS)]
        together(others, 6)
        others[0].release()
        Sequence(subject, 0, CAPITALS * 3).greedy(3)
        assert subject.runner.slot_positions("short", 1) == len(TEA) + 3
        assert paused.greedy(EXACT - 5) == stayed

    def test_an_entry_survives_the_reuse_of_its_slot(self, subject: Subject) -> None:
        """Another sequence fills the slot it was stored from; then it comes back to that very slot."""
        stayed = alone(subject, CAPITALS, EXACT)
        sequence = Sequence(subject, 0, CAPITALS)
        sequence.greedy(4)
        sequence.store(ENTRY)
        sequence.vacate()
        alone(subject, STORY * 4, 6)
        sequence.load(ENTRY, slot=0)
        assert sequence.greedy(EXACT - 4) == stayed
        drop(subject, ENTRY)

    def test_storing_leaves_the_slot_as_it_is(self, subject: Subject) -> None:
        """The sequence goes on without a break, and the entry is of the moment at which it was stored."""
        stayed = alone(subject, STORY, EXACT)
        sequence = Sequence(subject, 2, STORY)
        sequence.greedy(5)
        n_cells = sequence.n_computed
        sequence.store(ENTRY)
        assert sequence.greedy(EXACT - 5) == stayed
        again = Sequence(subject, 0, STORY)
        again.output = stayed[:5]
        again.load(ENTRY, slot=0, n_cells=n_cells)
        assert again.greedy(EXACT - 5) == stayed
        drop(subject, ENTRY)

    def test_an_entry_serves_many_sequences(self, subject: Subject) -> None:
        """Loading leaves it as it is: two slots and a later third have the same prefix."""
        n = subject.n_comparable
        expected = [alone(subject, STORY + tail, n) for tail in (TEA, CAPITALS, STORY)]
        first = Sequence(subject, 0, STORY)
        first.compute(len(STORY))
        first.store(ENTRY)
        first.release()
        users = [Sequence(subject, slot, STORY + tail) for slot, tail in ((1, TEA), (2, CAPITALS))]
        for user in users:
            user.load(ENTRY, user.slot, len(STORY))
        together(users, n)
        late = Sequence(subject, 0, STORY + STORY)
        late.load(ENTRY, 0, len(STORY))
        assert [*(user.output for user in users), late.greedy(n)] == expected
        drop(subject, ENTRY)

    @pytest.mark.parametrize("n_cells", [1, 12, len(STORY) - 1])
    def test_the_beginning_of_an_entry_can_be_loaded(self, subject: Subject, n_cells: int) -> None:
        """Fewer cells than it has; what is missing is computed, and the first tokens are the same."""
        expected = alone(subject, STORY, subject.n_comparable)
        origin = Sequence(subject, 0, STORY + TEA)
        origin.compute(len(STORY + TEA))
        origin.store(ENTRY)
        origin.release()
        sequence = Sequence(subject, 2, STORY)
        sequence.load(ENTRY, 2, n_cells)
        assert subject.runner.slot_positions("short", 2) == n_cells - 1
        assert sequence.greedy(subject.n_comparable) == expected
        drop(subject, ENTRY)

    def test_a_copy_leaves_the_source_as_it_is(self, subject: Subject) -> None:
        """Both go on, each as it would alone; the copy has only the cells that were asked for."""
        stayed = alone(subject, STORY, EXACT)
        other = alone(subject, STORY[:12] + TEA, subject.n_comparable)
        source = Sequence(subject, 0, STORY)
        source.greedy(3)
        target = Sequence(subject, 3, STORY[:12] + TEA)
        target.copy_from(source, 12)
        assert subject.runner.slot_positions("short", 3) == 11
        assert subject.runner.slot_positions("short", 0) == len(STORY) + 1
        assert target.greedy(subject.n_comparable) == other
        assert source.greedy(EXACT - 3) == stayed

    def test_a_whole_copy_goes_on_exactly(self, subject: Subject) -> None:
        """As the source does, cell by cell, also after the source has gone."""
        stayed = alone(subject, TEA, EXACT)
        source = Sequence(subject, 2, TEA)
        source.greedy(4)
        target = Sequence(subject, 0, TEA)
        target.output = list(source.output)
        target.copy_from(source, source.n_computed)
        source.release()
        assert target.greedy(EXACT - 4) == stayed

    def test_what_was_trimmed_can_be_computed_again(self, subject: Subject) -> None:
        """The same tokens, and others: nothing of what stood there is left."""
        expected = alone(subject, STORY, subject.n_comparable)
        other = alone(subject, STORY[:10] + TEA, subject.n_comparable)
        sequence = Sequence(subject, 1, STORY)
        sequence.greedy(8)
        sequence.trim(10)
        assert subject.runner.slot_positions("short", 1) == 9
        sequence.output = []
        assert sequence.greedy(subject.n_comparable) == expected
        sequence.trim(10)
        sequence.prompt, sequence.output = STORY[:10] + TEA, []
        assert sequence.greedy(subject.n_comparable) == other

    def test_stored_bytes_are_exact_after_each_operation(self, subject: Subject) -> None:
        """They are the sum of what StoreSlot returned for the entries that are there; nothing else changes them."""
        runner = subject.runner
        long, short = Sequence(subject, 0, STORY * 5), Sequence(subject, 1, TEA)
        long.compute(100)
        short.compute(10)
        first, second = long.store(1), short.store(2)
        assert runner.stored_bytes == first + second
        assert first > second > 0
        long.vacate()
        long.load(1, slot=2, n_cells=50)
        Sequence(subject, 3, STORY).copy_from(long, 50)
        short.trim(5)
        short.move(0)
        assert runner.stored_bytes == first + second
        third = short.store(3)
        assert second > third
        runner.apply(DropEntry(1))
        assert runner.stored_bytes == second + third
        drop(subject, 2, 3)

    def test_an_entry_stays_in_its_pool(self, subject: Subject) -> None:
        """A state of one pool does not fit the other's slots; the planner never does this."""
        sequence = Sequence(subject, 0, STORY)
        sequence.compute(10)
        sequence.store(ENTRY)
        with pytest.raises(AssertionError, match="of pool short, not long"):
            subject.runner.apply(LoadSlot("long", 0, ENTRY, 10, 1))
        assert subject.runner.slot_positions("long", 0) == -1
        drop(subject, ENTRY)

    def test_mistakes_are_refused_before_they_change_anything(self, subject: Subject) -> None:
        """A busy target, more cells than there are, an entry's number used twice: each is the planner's mistake."""
        runner, expected = subject.runner, alone(subject, STORY, 12)
        sequence, other = Sequence(subject, 0, STORY), Sequence(subject, 1, TEA)
        sequence.greedy(2)
        other.compute(5)
        n_cells = sequence.n_computed
        n_bytes = sequence.store(ENTRY)
        mistakes: list[KvOperation] = [
            StoreSlot("short", 1, ENTRY, 5),
            StoreSlot("short", 1, ENTRY + 1, 6),
            LoadSlot("short", 1, ENTRY, n_cells, 1),
            LoadSlot("short", 2, ENTRY, n_cells + 1, 1),
            CopySlot("short", 1, 0, 5, 1),
            CopySlot("short", 1, 2, 6, 1),
            TrimSlot("short", 1, 6),
        ]
        for mistake in mistakes:
            with pytest.raises(AssertionError):
                runner.apply(mistake)
        assert runner.stored_bytes == n_bytes
        assert [runner.slot_positions("short", slot) for slot in range(3)] == [n_cells - 1, 4, -1]
        assert sequence.greedy(10) == expected
        drop(subject, ENTRY)

    def test_a_dropped_entry_is_gone(self, subject: Subject) -> None:
        """Its number may be used again, for other cells."""
        expected = alone(subject, TEA, subject.n_comparable)
        first = Sequence(subject, 0, STORY)
        first.compute(10)
        first.store(ENTRY)
        drop(subject, ENTRY)
        with pytest.raises(KeyError):
            subject.runner.apply(LoadSlot("short", 2, ENTRY, 10, 1))
        second = Sequence(subject, 1, TEA)
        second.compute(10)
        second.store(ENTRY)
        second.vacate()
        second.load(ENTRY, slot=3)
        assert second.greedy(subject.n_comparable) == expected
        assert alone_in(subject, 2, TEA, subject.n_comparable) == expected
        drop(subject, ENTRY)

    def test_an_emptied_slot_can_be_filled_by_any_of_them(self, subject: Subject) -> None:
        """Release, then load; release, then copy: nothing of what was there before mixes in."""
        expected = alone(subject, CAPITALS, EXACT)
        source = Sequence(subject, 1, CAPITALS)
        source.greedy(1)
        source.store(ENTRY)
        for way in ("load", "copy"):
            Sequence(subject, 0, STORY * 3).compute(50)
            subject.runner.apply(ReleaseSlot("short", 0, 1))
            target = Sequence(subject, 0, CAPITALS)
            target.output = list(source.output)
            if way == "load":
                target.load(ENTRY, 0, source.n_computed)
            else:
                target.copy_from(source, source.n_computed)
            assert target.greedy(EXACT - 1) == expected
            target.release()
        drop(subject, ENTRY)


def drop(subject: Subject, *entries: int) -> None:
    """Forget entries; the host store is empty afterwards."""
    for entry in entries:
        subject.runner.apply(DropEntry(entry))
    assert subject.runner.stored_bytes == 0
