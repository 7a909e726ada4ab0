"""Accounts from one engine to the next: what is told, when, and what a recording knows of it."""

from __future__ import annotations

from poise.engine.report import STATUS_PERIOD_NS
from poise.scheduler.fairness.accounts import Account
from poise.scheduler.policy import TenantPolicy
from poise.scheduler.request import RequestClass
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts
from poise_lab.sim.replay import replay
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench

LIMITED = {"a": TenantPolicy(tokens_per_minute=600)}


def told(b: Bench) -> list[Accounts]:
    return [m for m in b.mail.sent if isinstance(m, Accounts)]


def begun(accounts: Accounts | None = None, clock: VirtualClock | None = None) -> Bench:
    b = Bench(slots=1, clock=clock, tenants=LIMITED, grain_us=1, preemptions_max=0)
    b.send(accounts or Accounts(0, []))
    return b


def test_the_next_engine_refuses_and_ranks_as_the_one_before() -> None:
    """A tenant that has used its tokens, and one that is ahead of another."""
    b = begun()
    b.submit(1, [9] * 400, 100, tenant="b")
    b.step(2)
    b.submit(2, [9] * 400, 100)
    b.submit(3, [8] * 250, 100)
    while not b.finishes(1):
        b.step()
    b.clock.advance(STATUS_PERIOD_NS)
    b.step()
    last = told(b)[-1]
    assert {account.name for account in last.accounts} == {"a", "b"}
    new = begun(last, b.clock)
    new.submit(6, [1] * 100, 20, tenant="c")
    new.step(2)
    new.submit(7, [1, 2], tenant="a")
    new.submit(8, [1, 2], tenant="b")
    new.submit(9, [1, 2], tenant="d")
    new.run()
    (refused,) = [m for m in new.mail.sent if isinstance(m, wire.Refused)]
    assert (refused.request_id, refused.reason) == (7, "tenant_rate")
    starts = [s.request_id for step in new.steps for s in step.starts]
    assert starts.index(9) < starts.index(8), "who is ahead goes after one that is not, though it came first"


def test_an_engine_says_nothing_of_accounts_before_it_was_told_of_them() -> None:
    """Else one that dies at once would have every debt forgotten."""
    b = Bench()
    b.submit(1, [1, 2, 3])
    b.run()
    assert not told(b)
    b.send(Accounts(0, [Account("b", {RequestClass.INTERACTIVE: 70})]))
    b.submit(2, [1, 2, 3])
    b.run()
    assert "b" in {account.name for account in told(b)[-1].accounts}


def test_a_recording_with_accounts_is_repeated() -> None:
    """And without them it would not be the same."""
    b = begun(Accounts(0, [Account("a", {RequestClass.INTERACTIVE: 70, RequestClass.BACKGROUND: -3}, -20.0), Account("x", {})]))
    b.submit(1, [1, 2, 3])
    b.submit(2, [1, 2, 3], tenant="b")
    b.run()
    lines = list(b.engine.journal.lines())
    result = replay(lines)
    assert not result.difference
    assert result.n_plans
    assert "answer" in replay([line for line in lines if '"restore"' not in line]).difference


def test_the_journal_forgets_whose_accounts_they_were() -> None:
    """An erased tenant's name goes; the others' stay."""
    b = begun(Accounts(0, [Account("a", {}, -20.0), Account("secret-name", {RequestClass.INTERACTIVE: 70})]))
    b.run()
    b.send(to_engine.Erase(1, "secret-name"))
    b.run()
    text = "".join(b.engine.journal.lines())
    assert "secret-name" not in text
    assert '"name": "a"' in text
    (erased,) = [m for m in b.mail.sent if isinstance(m, wire.Erased)]
    assert erased.journal_entries == 1
    assert {account.name for account in told(b)[-1].accounts} == {"a"}
