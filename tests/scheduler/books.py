"""The scheduler's books, audited: every invariant that can be seen from inside, in time linear in what it holds."""

from poise.scheduler.fairness.fairness import DEPARTED_MAX, ServedCost
from poise.scheduler.lifecycle import Lifecycle
from poise.scheduler.memory.kv import KvPool
from poise.scheduler.memory.store import HostStore, Purpose
from poise.scheduler.planning.placement import Placement
from poise.scheduler.queues import WaitingQueue, _is_live
from poise.scheduler.request import Hold, RequestClass
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.sequence import Sequence, State


def check_scheduler(scheduler: Scheduler) -> None:
    """Assert every invariant that can be seen from inside. Linear."""
    check_placement(scheduler._placement)
    for queue in scheduler._books.queues.values():
        check_queue(queue)
    for served in scheduler._books.served.values():
        check_served(served)
    check_life(scheduler._life)


def check_life(life: Lifecycle) -> None:
    """Assert that every sequence is where its state says, once."""
    books = life._books
    running = [s for c in RequestClass for s in books.running[c].values()]
    queued = [s for queue in books.queues.values() for s in queue.queued()]
    paused = list(life.paused.values())
    everywhere = sorted(s.request.request_id for s in running + queued + paused)
    assert everywhere == sorted(life.sequences), "a request is nowhere, or in two places"
    held = sorted(s.request.request_id for pool in books.pools.values() for s in pool.holders.values())
    with_slot = [s for s in running + paused if s.slot >= 0]
    assert held == sorted(s.request.request_id for s in with_slot), "slots and sequences disagree"
    for sequence in life.sequences.values():
        assert 0 <= sequence.n_computed < sequence.n_tokens, f"{sequence} has nothing to compute"
        assert sequence.slot < 0 or sequence.entry < 0, f"{sequence} is in two places"
        has_cells = sequence.slot >= 0 or sequence.entry >= 0
        assert has_cells or sequence.n_computed == 0, f"{sequence} has cells that are nowhere"
        assert sequence.n_preempted <= books.policy.preemptions_max, f"{sequence} was preempted too often"
    assert all(s.state is State.RUNNING and s.slot >= 0 for s in running), "a running sequence without a slot"
    assert all(s.state is State.PAUSED for s in paused), "a paused sequence is not paused"
    assert all((s.state is State.PAUSED) != s.may_run for s in life.sequences.values()), "a sequence stands in vain"
    for request_class in RequestClass:
        wanting = [s for s in running + queued if s.request_class is request_class]
        active = {s.request.account for s in wanting}
        assert active == books.served[request_class].tenants.keys(), f"{request_class}'s active tenants are others"
    tenants = books.tenants._tenants.items()
    counts = {tenant: (own.n_live, own.n_queued, own.n_running, own.n_held) for tenant, own in tenants}
    assert {s.request.account for s in life.sequences.values()} <= counts.keys(), "a live tenant is forgotten"
    of_tenant: dict[str, list[Sequence]] = {}
    for sequence in life.sequences.values():
        of_tenant.setdefault(sequence.request.account, []).append(sequence)
    for tenant, counted in counts.items():
        theirs = of_tenant.get(tenant, [])
        n_new = sum(not s.started for s in theirs)
        n_held = sum(s.started and s.hold is not Hold.RUN for s in theirs)
        really = (len(theirs), n_new, sum(s.state is State.RUNNING for s in theirs), n_held)
        assert counted == really, f"tenant {tenant}'s live, queued, running and held requests are miscounted"


def check_queue(queue: WaitingQueue) -> None:
    queued = list(queue.queued())
    assert len(queued) == queue.n_queued, "queued sequences miscounted"
    assert sum(not s.started for s in queued) == queue.n_new, "new requests miscounted"
    new = [s.request.account for s in queued if not s.started]
    assert {account: new.count(account) for account in new} == queue._new_by_account, "new by account miscounted"
    assert sum(s.request.n_known for s in queued) == queue.prompt_tokens, "queued prompt tokens miscounted"
    output_tokens = sum(s.n_likely - s.request.n_output for s in queued)
    assert output_tokens == queue.output_tokens, "queued output tokens miscounted"
    heaps = [(heavy, tenant, heap) for heavy, of in queue._heaps.items() for tenant, heap in of.items()]
    assert sum(len(heap) for _, _, heap in heaps) == queue._n_entries, "entries miscounted"
    for heavy, tenant, heap in heaps:
        assert heap, f"tenant {tenant} has an empty heap"
        assert _is_live(heap[0]), f"tenant {tenant} has a stale head"
        assert heap[0][3].is_queued, f"tenant {tenant}'s head is {heap[0][3].state}"
        for sequence in (entry[3] for entry in heap if _is_live(entry)):
            assert queue.is_heavy(sequence) is sequence.heavy is heavy, f"{sequence} waits among the wrong ones (rule R5)"
    watching = sorted(i for sequences in queue._watched.values() for i in sequences)
    assert watching == sorted(s.request.request_id for s in queued for _ in queue._deciding(s)), "who watches is another"


def check_placement(placement: Placement) -> None:
    """Assert that slots, store and index agree (invariants 3, 11 and 12)."""
    for pool in placement.pools.values():
        check_pool(pool)
    check_store(placement.store)
    kept = list(placement.index)
    warm = sorted((name, slot) for name, pool in placement.pools.items() for slot in pool.warm)
    indexed = [prefix for prefix in kept if prefix.slot >= 0]
    assert sorted((p.pool, p.slot) for p in indexed) == warm, "index and warm slots disagree"
    assert all(placement.pools[p.pool].warm[p.slot] is p for p in indexed), "a warm slot holds another prefix"
    stored = {e.number: e for e in placement.store}
    prefixes = sorted(p.entry for p in kept if p.entry >= 0)
    assert prefixes == sorted(n for n, e in stored.items() if e.purpose is Purpose.PREFIX), "index and store differ"
    for prefix in kept:
        if prefix.entry >= 0:
            entry = stored[prefix.entry]
            assert (entry.tenant, entry.pool) == (prefix.tenant, prefix.pool), "a prefix has another's name"
    swaps = sorted(n for n, e in stored.items() if e.purpose is Purpose.SWAP)
    assert swaps == sorted(placement._swapped), "swapped sequences and store disagree"
    for number, sequence in placement._swapped.items():
        where = (sequence.entry, sequence.slot)
        assert where == (number, -1), f"entry {number} and its sequence disagree"
    pinned = sorted(entry.number for entry in placement.templates.values())
    assert pinned == sorted(n for n, e in stored.items() if e.purpose is Purpose.TEMPLATE), "templates are lost"


def check_pool(pool: KvPool) -> None:
    """Assert that the books balance (invariant 3)."""
    assert sorted([*pool._free, *pool.holders]) == list(range(pool.policy.n_slots)), f"{pool.name}: slots lost"
    for slot, sequence in pool.holders.items():
        assert sequence.slot == slot, f"{pool.name}: slot {slot} is out of step with its sequence"
        assert sequence.pool == pool.name, f"{pool.name}: slot {slot} is held by a sequence of {sequence.pool}"
        has_slot = sequence.state in (State.RUNNING, State.PAUSED)
        assert has_slot, f"{pool.name}: slot {slot} is held by a {sequence.state} sequence"
        assert sequence.n_computed <= pool.policy.slot_cells, f"{pool.name}: slot {slot} overflows"
    for slot, prefix in pool.warm.items():
        assert slot not in pool.holders, f"{pool.name}: slot {slot} is warm and held"
        where = (prefix.pool, prefix.slot)
        assert where == (pool.name, slot), f"{pool.name}: the prefix in slot {slot} is elsewhere"
    by_class = {c: sum(s.request_class is c for s in pool.holders.values()) for c in RequestClass}
    assert by_class == pool._held_by_class, f"{pool.name}: class books are wrong"
    assert sum(pool._held_by_tenant.values()) == len(pool.holders), f"{pool.name}: tenant books are wrong"
    assert all(n > 0 for n in pool._held_by_tenant.values()), f"{pool.name}: a tenant holds nothing"


def check_store(store: HostStore) -> None:
    """Assert that the books balance."""
    for purpose in Purpose:
        held = sum(e.n_bytes for e in store if e.purpose is purpose)
        assert held == store._bytes[purpose], f"the store's {purpose} bytes are miscounted"
    by_tenant: dict[Purpose, dict[str, int]] = {purpose: {} for purpose in Purpose}
    for entry in store:
        assert not entry.in_use, f"entry {entry.number} is still marked as in use"
        held_bytes = by_tenant[entry.purpose]
        held_bytes[entry.tenant] = held_bytes.get(entry.tenant, 0) + entry.n_bytes
    assert by_tenant[Purpose.PREFIX] == store._prefix_bytes, "prefix bytes by tenant are miscounted"
    assert by_tenant[Purpose.SWAP] == store._swap_bytes, "swap bytes by account are miscounted"


def check_served(served: ServedCost) -> None:
    assert served._served.keys() == served._n_active.keys(), "served cost and activity disagree"
    assert all(n > 0 for n in served._n_active.values()), "an account is alive with no requests"
    assert served._n_queued.keys() <= served._n_active.keys(), "an account waits that is not alive"
    assert all(n <= served._n_active[t] for t, n in served._n_queued.items()), "more wait than there are"
    assert served._weights == sum(served._units(tenant) for tenant in served._served), "the weights of the living are off"
    assert len(served._departed) <= DEPARTED_MAX, "too many are remembered"
