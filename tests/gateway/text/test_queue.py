"""Whose text is next, and how much may wait: order and room, without a worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.text.queue import JOB_BYTES, Entry, TextQueue
from poise.wire.text import LARGE_BYTES

MIB = 1 << 20


def add(queue: TextQueue[Entry], account: str, n_bytes: int = 10) -> Entry:
    entry = Entry(account, n_bytes)
    assert queue.add(entry, 0)
    return entry


def work(queue: TextQueue[Entry], worked_us: int = 100) -> Entry | None:
    """Take the next one and be done with it."""
    entry = queue.take()
    if entry is not None:
        queue.charge(entry, worked_us)
        queue.end(entry)
    return entry


def test_many_texts_of_one_account_delay_another_s_by_one() -> None:
    """Six large ones wait, the first is being worked on: the newcomer is next."""
    queue = TextQueue[Entry](100 * MIB)
    large = [add(queue, "many", 4 * MIB) for _ in range(6)]
    first = queue.take()
    small = add(queue, "one")
    assert first is large[0]
    queue.charge(first, 1_000_000)
    queue.end(first)
    assert work(queue) is small
    assert [work(queue) for _ in range(6)] == [*large[1:], None]


def test_accounts_take_turns_by_what_they_were_served() -> None:
    """Not by how many texts they have: one that is dear waits for as many cheap ones as it cost."""
    queue = TextQueue[Entry](MIB)
    for _ in range(9):
        add(queue, "dear")
        add(queue, "cheap")
    order = []
    while (entry := queue.take()) is not None:
        order.append(entry.account)
        queue.charge(entry, 300 if entry.account == "dear" else 100)
        queue.end(entry)
    assert order[:8].count("dear") == 2


def test_a_lone_account_leaves_room_for_the_next_one() -> None:
    """However much it sends; and the next one's first text is taken."""
    queue = TextQueue[Entry](MIB)
    n = 0
    while queue.add(Entry("flood", 10_000), 0):
        n += 1
    assert 0.4 * MIB < queue.n_bytes <= MIB / 2
    add(queue, "other", 100_000)
    assert not queue.add(Entry("flood", 10_000), 0)


def test_a_worker_that_is_kept_for_small_ones_takes_no_large_one() -> None:
    """A small text may pass a large one, of its own account, too."""
    queue = TextQueue[Entry](MIB)
    large = add(queue, "a", LARGE_BYTES + 1)
    small = add(queue, "a")
    assert queue.take(only_small=True) is small
    assert queue.take(only_small=True) is None
    assert queue.take() is large


def test_what_is_put_back_is_the_first_of_its_account() -> None:
    queue = TextQueue[Entry](MIB)
    entries = [add(queue, "a") for _ in range(3)]
    taken = queue.take()
    assert taken is entries[0]
    queue.put_back(taken)
    assert [work(queue) for _ in range(3)] == entries


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60_000), st.sampled_from(["work", "drop", "wait"]))))
def test_the_books_balance(texts: list[tuple[str, int, str]]) -> None:
    """Whatever comes and goes: bytes and numbers are those of what is there, and none when all is done."""
    queue, there = TextQueue[Entry](MIB), list[Entry]()
    for account, n_bytes, then in texts:
        entry = Entry(account, n_bytes)
        if queue.add(entry, 0):
            there.append(entry)
        if then == "work" and (done := work(queue)) is not None:
            there.remove(done)
        elif then == "drop" and there:
            gone = there.pop()
            assert queue.drop(gone)
            assert not queue.drop(gone) if any(e.account == gone.account for e in there) else True
            queue.end(gone)
        assert queue.n_waiting == len(there)
        assert queue.n_bytes == sum(entry.n_bytes + JOB_BYTES for entry in there) <= MIB
    while work(queue) is not None:
        pass
    assert (queue.n_waiting, queue.n_bytes) == (0, 0)
