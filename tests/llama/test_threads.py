"""The governor of compute threads, against made-up hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.llama.running.threads import ThreadGovernor

PASS_NS = 30_000_000


def run(governor: ThreadGovernor, slowness: Callable[[int], float], passes: int, now_ns: int = 0) -> tuple[int, list[int]]:
    """Make passes on a host on which a pass with n threads is `slowness(n)` slow; returns the time and the threads used."""
    used = []
    for _ in range(passes):
        threads = governor.threads
        used.append(threads)
        now_ns += int(PASS_NS * slowness(threads))
        governor.observe(slowness(threads), now_ns)
    return now_ns, used


def quiet(threads: int) -> float:
    return 4 / threads


def crowded(threads: int) -> float:
    """More threads wait for each other; one gets through."""
    return {4: 40.0, 2: 20.0, 1: 6.0}[threads]


def test_a_quiet_host_keeps_all_threads() -> None:
    """Besides one short trial at the start, every pass uses what there is."""
    _, used = run(ThreadGovernor(4), quiet, 500)
    assert used.count(4) >= 490


def test_beside_busy_programs_it_goes_down_to_one_and_back() -> None:
    """Within a few passes; and when the host is quiet again, up to all of them."""
    governor = ThreadGovernor(4)
    now_ns, _ = run(governor, quiet, 100)
    now_ns, used = run(governor, crowded, 60, now_ns)
    assert used[-20:].count(1) >= 17
    now_ns, _ = run(governor, quiet, 400, now_ns)
    _, used = run(governor, quiet, 50, now_ns)
    assert used.count(4) >= 45


def test_a_host_that_is_crowded_from_the_start_is_noticed_too() -> None:
    """The trial at the start finds it, though nothing better has been seen."""
    _, used = run(ThreadGovernor(2), crowded, 60)
    assert used[-20:].count(1) >= 17


def test_trials_of_more_threads_get_rare_while_they_fail() -> None:
    """What they cost stays small: a failed one ends after one pass, and the pause doubles to 16 s."""
    governor = ThreadGovernor(2)
    _, used = run(governor, crowded, 1000)
    assert used.count(2) < 40


def test_passes_of_different_kinds_are_no_reason_to_change() -> None:
    """Prompts and decodes differ from what was expected of them in their own ways; those are not compared."""
    governor = ThreadGovernor(2)
    now_ns = 0
    for i in range(600):
        kind = 3.0 if (i // 7) % 2 else 1.0  # seven decodes, then seven chunks that take three times what they should
        now_ns += PASS_NS
        governor.observe(quiet(governor.threads) * kind, now_ns)
    assert governor.n_changes == 0


@pytest.mark.parametrize("noise", [0.7, 1.4])
def test_ordinary_noise_changes_nothing(noise: float) -> None:
    """Passes that vary by a factor of two are no crowd."""
    governor = ThreadGovernor(2)
    now_ns = 0
    for i in range(400):
        slowness = quiet(governor.threads) * (noise if i % 3 else 1.0)
        now_ns += PASS_NS
        governor.observe(slowness, now_ns)
    assert governor.n_changes == 0


def test_a_single_thread_has_nothing_to_choose() -> None:
    governor = ThreadGovernor(1)
    _, used = run(governor, lambda n: 50.0, 10)
    assert used == [1] * 10
