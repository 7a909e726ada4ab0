"""Budgets hold: for requests at once, over restarts and crashes, and while clocks jump; what cannot be put down is not spent."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings as how
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from poise.config import Settings
from poise.config.hybrid import NANO, BackendSettings
from poise.config.serving import TenantSettings
from poise.gateway.models.money import books as files
from poise.gateway.models.money.books import LedgerError, read
from poise.gateway.models.money.ledger import BudgetExhausted, Ledger, Reservation
from poise.gateway.models.money.prices import Tokens
from poise.gateway.models.money.windows import PERIODS, start_of
from poise.gateway.request.refusals import ApiError

URL = "https://api.example.com/v1"
NOON = datetime(2026, 11, 30, 12, 30, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def budgets(amounts: Mapping[str, str]) -> dict[str, Any]:
    return {f"budget_{period}": amount for period, amount in amounts.items()}


def settings(*, tenant: dict[str, str] | None = None, backend: dict[str, str] | None = None, **prices: Any) -> Settings:
    """A backend at a unit for each 1,000 tokens of prompt and of output, unless it says otherwise; and a free one."""
    prices = prices or {"price_input": "1000", "price_output": "1000"}
    paid = BackendSettings(url=URL, **prices, **budgets(backend or {}))
    limits = TenantSettings(**budgets(tenant or {}))
    return Settings(backends={"cloud": paid, "free": BackendSettings(url=URL)}, tenant_defaults=limits)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spend.sqlite"


def spent_of(path: Path, period: str = "day") -> dict[tuple[str, str], files.Spent]:
    return {(line.tenant, line.backend): line.spent for line in read(path)[0] if line.period == period}


async def reserve(ledger: Ledger, n_tokens: int = 1000, *, tenant: str = "alice", backend: str = "cloud") -> Reservation:
    return await ledger.reserve(tenant, backend, "req-1", n_tokens, 0)


async def test_the_life_of_a_reservation(path: Path) -> None:
    """Reserved on the disk before anything is sent, settled with what it took, and once."""
    ledger = Ledger(settings(backend={"day": "2"}), path, Clock())
    reservation = await ledger.reserve("alice", "cloud", "req-1", 700, 300)
    ((_, tenant, backend, request, nano),) = read(path)[1]
    assert (tenant, backend, request, nano) == ("alice", "cloud", "req-1", NANO)
    assert [left.left_nano for left in ledger.budgets_left()] == [NANO]
    assert await ledger.settle(reservation, Tokens(200, 100, 50)) == NANO // 4
    assert await ledger.settle(reservation, None) == NANO // 4
    ledger.release(reservation)
    assert [(left.name, left.left_nano) for left in ledger.budgets_left()] == [("cloud", 2 * NANO - NANO // 4)]
    ledger.close()
    assert spent_of(path) == {("alice", "cloud"): files.Spent(1, 200, 100, 50, NANO // 4)}
    assert not read(path)[1]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_what_is_not_known_is_charged_whole_and_marked(path: Path) -> None:
    """A connection that dies after sending does not make it free."""
    ledger = Ledger(settings(), path, Clock())
    reservation = await reserve(ledger)
    assert await ledger.settle(reservation, None) == NANO
    assert not reservation.is_known
    ledger.close()
    assert spent_of(path)["alice", "cloud"] == files.Spent(1, nano=NANO, unknown=1, unknown_nano=NANO)


@pytest.mark.parametrize("scope", ["tenant", "backend"])
@pytest.mark.parametrize(
    ("period", "resets_s", "at"),
    [("hour", 1800, "2026-11-30 13:00"), ("day", 41_400, "2026-12-01 00:00"), ("month", 41_400, "2026-12-01")],
)
async def test_a_budget_that_is_gone_says_which_and_until_when(scope: Any, period: str, resets_s: int, at: str) -> None:
    """Scope, period, limit, what is spent, when it begins anew; and then it does."""
    clock = Clock()
    limits: dict[str, Any] = {scope: {period: "1.5"}}
    ledger = Ledger(settings(**limits), None, clock)
    await ledger.settle(await reserve(ledger), None)
    assert ledger.has_room("alice", "cloud")
    with pytest.raises(BudgetExhausted) as refused:
        await reserve(ledger)
    error = refused.value
    assert (error.status, error.code, error.scope, error.period, error.limit_nano) == (
        429,
        "budget_exhausted",
        scope,
        period,
        3 * NANO // 2,
    )
    assert error.headers == {"Retry-After": str(resets_s)}
    for part in ("cloud" if scope == "backend" else "Your budget", period, "1.00 of 1.50", "could cost 1.00", at):
        assert part in error.message
    await ledger.settle(await reserve(ledger, 500), Tokens(500, 0, 0))
    assert not ledger.has_room("alice", "cloud")
    assert ledger.has_room("alice", "free")
    assert ledger.has_room("bob", "cloud") is (scope == "tenant")
    clock.now += timedelta(seconds=resets_s)
    assert ledger.has_room("alice", "cloud")
    ledger.close()


async def test_what_is_only_reserved_may_come_free_soon() -> None:
    """Such a refusal is one to come back from in seconds."""
    ledger = Ledger(settings(tenant={"month": "1.5"}), None, Clock())
    reservation = await reserve(ledger)
    with pytest.raises(BudgetExhausted) as refused:
        await reserve(ledger)
    assert refused.value.retry_after_s == 5.0
    ledger.release(reservation)
    await reserve(ledger)
    with pytest.raises(BudgetExhausted, match="Ask for less output, or send less"):
        await reserve(ledger, 10_000)
    ledger.close()


@pytest.mark.parametrize("scope", ["tenant", "backend"])
async def test_of_a_hundred_at_once_none_goes_beyond_the_budget(path: Path, scope: Any) -> None:
    """Also when the server dies in between, at every tenth of them, and another one goes on."""
    limits: dict[str, Any] = {scope: {"day": "7"}}
    wanted = settings(**limits)
    n_taken = 0
    for n_before in range(10):
        ledger = Ledger(wanted, path, Clock())
        got = await asyncio.gather(*(reserve(ledger, 100) for _ in range(100)), return_exceptions=True)
        taken = [one for one in got if isinstance(one, Reservation)]
        assert all(isinstance(one, BudgetExhausted) for one in got if one not in taken)
        for one in taken[10 if n_before < 6 else 0 :]:
            ledger.release(one)
        n_taken += min(10, len(taken)) if n_before < 6 else 0
        ledger.close()
        assert sum(line.nano for line in read(path)[1]) == (10 if n_before < 6 else 0) * NANO // 10
        assert n_taken <= 70
    assert n_taken == 60
    ledger = Ledger(wanted, path, Clock())
    got = await asyncio.gather(*(reserve(ledger, 100) for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(one, Reservation) for one in got) == 10
    ledger.close()


async def test_a_tenant_does_not_spend_what_another_one_has() -> None:
    """And keys that anybody can make have one budget together."""
    ledger = Ledger(settings(tenant={"day": "1"}), None, Clock())
    await reserve(ledger, tenant="alice")
    await reserve(ledger, tenant="bob")
    await reserve(ledger, tenant="key-0123")
    for tenant in ("alice", "key-4567"):
        with pytest.raises(BudgetExhausted):
            await reserve(ledger, tenant=tenant)
    ledger.close()


async def test_what_is_free_is_counted_and_not_written_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction for a request; the count is there in the end."""
    monkeypatch.setattr(files, "FLUSH_S", 3600.0)
    ledger = Ledger(settings(tenant={"day": "0"}), path, Clock())
    await asyncio.to_thread(ledger._books._put(lambda _: None).result)
    before = path.with_name(path.name + "-wal").stat().st_size
    for _ in range(1000):
        reservation = await reserve(ledger, backend="free")
        assert await ledger.settle(reservation, Tokens(3, 1, 2)) == 0
    assert await ledger.settle(await reserve(ledger, backend="free"), None) == 0
    assert path.with_name(path.name + "-wal").stat().st_size == before
    assert ledger._books._queue.qsize() == 0
    ledger.close()
    assert spent_of(path)["alice", "free"] == files.Spent(1001, 3000, 1000, 2000, unknown=1)


async def test_a_server_may_bill_more_than_was_foreseen() -> None:
    """That is money that was spent: it is charged, however much, and the budget is gone."""
    ledger = Ledger(settings(backend={"month": "10"}), None, Clock())
    assert await ledger.settle(await reserve(ledger), Tokens(50_000, 0, 0)) == 50 * NANO
    assert [left.left_nano for left in ledger.budgets_left()] == [-40 * NANO]
    assert not ledger.has_room("alice", "cloud")
    ledger.close()


async def test_absurd_amounts_do_not_break_the_books(path: Path) -> None:
    """They are cut to what the file holds."""
    ledger = Ledger(settings(price_input="999999999", price_output="0"), path, Clock())
    for _ in range(3):
        reservation = await ledger.reserve("alice", "cloud", "req", 1 << 62, 1 << 62)
        await ledger.settle(reservation, Tokens(1 << 90, 0, 1 << 70))
    ledger.close()
    assert spent_of(path)["alice", "cloud"].nano == (1 << 62) - 1
    Ledger(settings(), path, Clock()).close()


async def test_without_a_disk_nothing_is_reserved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is refused with 503, what it wanted is free again, and what had to be settled is when the disk is back."""
    ledger = Ledger(settings(tenant={"day": "2"}), path, Clock())
    running = await reserve(ledger)
    original = files._add

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(files, "_add", full)
    await ledger.settle(running, Tokens(100, 0, 0))
    for _ in range(3):
        with pytest.raises(ApiError, match="it cannot be written") as refused:
            await reserve(ledger)
        assert (refused.value.status, refused.value.code) == (503, "ledger_unavailable")
    assert [left.left_nano for left in ledger.budgets_left() if left.name == "alice"] == [2 * NANO - NANO // 10]
    assert len(read(path)[1]) == 1
    monkeypatch.setattr(files, "_add", original)
    await ledger.settle(await reserve(ledger), Tokens(200, 0, 0))
    ledger.close()
    assert spent_of(path)["alice", "cloud"] == files.Spent(2, 300, 0, 0, 3 * NANO // 10)
    assert not read(path)[1]


async def test_a_client_that_leaves_while_it_is_reserved_leaves_nothing(path: Path) -> None:
    """Also when the entry is on its way to the disk."""
    ledger = Ledger(settings(tenant={"day": "1"}), path, Clock())
    gate = threading.Event()
    ledger._books._put(lambda _: gate.wait())
    task = asyncio.create_task(reserve(ledger))
    await asyncio.sleep(0)
    assert not ledger.has_room("alice", "cloud")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert ledger.has_room("alice", "cloud")
    ledger.close()
    assert read(path) == ([], [])


def test_a_ledger_has_one_server(path: Path) -> None:
    """A second one is told so; a file that is none is left as it is."""
    first = Ledger(settings(), path, Clock())
    with pytest.raises(LedgerError, match=r"another server writes the ledger .*spend\.sqlite; set egress\.ledger"):
        Ledger(settings(), path, Clock())
    first.close()
    Ledger(settings(), path, Clock()).close()
    path.write_text("no database " * 100)
    with pytest.raises(LedgerError, match="cannot be used: file is not a database"):
        Ledger(settings(), path, Clock())
    assert path.read_text().startswith("no database")
    newer = path.with_name("newer.sqlite")
    with sqlite3.connect(newer) as connection:
        connection.executescript("CREATE TABLE x (y); PRAGMA user_version = 7;")
    connection.close()
    with pytest.raises(LedgerError, match="version 7"):
        Ledger(settings(), newer, Clock())
    with pytest.raises(LedgerError, match="version 7"):
        read(newer)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(settings(), Path("/proc/nowhere/spend.sqlite"), Clock())


async def test_an_erased_tenant_is_named_no_longer_and_has_no_budget_again(path: Path) -> None:
    """What it has spent stays spent, over a restart and for requests that are under way; when its windows are over, nothing tells
    it from others."""
    clock, wanted = Clock(), settings(tenant={"month": "3"})
    ledger = Ledger(wanted, path, clock)
    await ledger.settle(await reserve(ledger), Tokens(1000, 0, 0))
    await ledger.settle(await reserve(ledger, tenant="bob"), Tokens(0, 0, 0))
    running = await reserve(ledger)
    assert await ledger.erase("alice") == {"spend_lines": 3}
    await ledger.settle(running, Tokens(500, 0, 0))
    lost = await reserve(ledger)
    assert lost.tenant == "alice"
    await ledger.erase("alice")
    on_disk = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"bob" in on_disk
    assert b"alice" not in on_disk
    ledger.close()
    ledger = Ledger(wanted, path, clock)
    with pytest.raises(BudgetExhausted, match=r"2\.50 of 3\.00"):
        await reserve(ledger)
    clock.now += timedelta(days=40)
    await ledger.settle(await reserve(ledger, tenant="bob"), Tokens(1, 0, 0))
    ledger.close()
    Ledger(wanted, path, clock).close()
    assert {line.tenant for line in read(path)[0]} == {"~", "bob"}
    assert sum(spent.nano for spent in spent_of(path, "month").values()) == 2 * NANO + NANO // 2 + NANO // 1000


async def test_without_a_budget_an_erased_tenant_is_one_of_many(path: Path) -> None:
    """Counts that were not yet written are renamed as well."""
    ledger = Ledger(settings(), path, Clock())
    for tenant in ("alice", "bob"):
        await ledger.settle(await reserve(ledger, tenant=tenant, backend="free"), Tokens(1, 0, 0))
        await ledger.erase(tenant)
    ledger.close()
    assert spent_of(path) == {("~", "free"): files.Spent(2, 2)}


async def test_windows_go_when_there_are_newer_ones(path: Path) -> None:
    """The file keeps so many; before the first of which there are books, nothing is reserved."""
    clock = Clock()
    ledger = Ledger(settings(), path, clock)
    for _ in range(500):
        await ledger.settle(await reserve(ledger), Tokens(1, 0, 0))
        clock.now += timedelta(days=1)
    assert len(ledger._windows) <= 3 * 2 * 24 + 1
    clock.now = NOON
    with pytest.raises(ApiError, match="the clock is before the time"):
        await reserve(ledger)
    assert not ledger._open
    await reserve(ledger, backend="free")
    ledger.close()
    clock.now = NOON + timedelta(days=499)
    ledger = Ledger(settings(), path, clock)
    await ledger.settle(await reserve(ledger), Tokens(1, 0, 0))
    ledger.close()
    kept = {period: sum(line.period == period for line in read(path)[0]) for period in PERIODS}
    assert kept == {"hour": 48, "day": 400, "month": 18}


class Money(RuleBasedStateMachine):
    """Two tenants and two backends with budgets of every kind, a clock that jumps, a server that stops and is killed."""

    running = Bundle("running")
    LIMITS: ClassVar = {"hour": "0.3", "day": "0.9", "month": "1.8"}

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        backend = BackendSettings(url=URL, price_input="1000", price_output="3000", **budgets(self.LIMITS))
        tenant = TenantSettings(**budgets(self.LIMITS))
        self.settings = Settings(backends={"one": backend, "two": backend}, tenant_defaults=tenant)
        self.life = 0
        self.path = self.folder / "0" / "spend.sqlite"
        self.ledger = Ledger(self.settings, self.path, self.clock)
        self.books: dict[int, tuple[Reservation, int]] = {}
        """What the model holds of every reservation: what is charged or reserved for it, by its number in all."""

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.loop.close()
            shutil.rmtree(self.folder)

    @rule(
        target=running,
        tenant=st.sampled_from("ab"),
        backend=st.sampled_from(["one", "two"]),
        n=st.tuples(st.integers(0, 120), st.integers(0, 60)),
    )
    def reserve(self, tenant: str, backend: str, n: tuple[int, int]) -> Any:
        nano = (n[0] + 3 * n[1]) * NANO // 1000
        at = int(self.clock.now.timestamp())
        fits = all(
            nano + self.taken(scope, name, period, start_of(period, at)) <= limit
            for scope, name, period, limit in self.limits(tenant, backend)
        )
        try:
            reservation = self.loop.run_until_complete(self.ledger.reserve(tenant, backend, "r", *n))
        except BudgetExhausted:
            assert not fits
            return None
        assert fits or not nano
        self.books[id(reservation)] = reservation, nano
        return self.life, reservation, n

    @rule(what=consumes(running), share=st.floats(0, 1), is_known=st.booleans())
    def settle(self, what: Any, share: float, is_known: bool) -> None:
        if what is None or what[0] != self.life:
            return
        _, reservation, (n_prompt, n_output) = what
        used = Tokens(int(n_prompt * share), 0, int(n_output * share)) if is_known else None
        cost = self.loop.run_until_complete(self.ledger.settle(reservation, used))
        assert cost == ((used.prompt + 3 * used.output) * NANO // 1000 if used else reservation.nano)
        self.books[id(reservation)] = reservation, cost

    @rule(what=consumes(running))
    def release(self, what: Any) -> None:
        if what is not None and what[0] == self.life:
            self.ledger.release(what[1])
            self.books[id(what[1])] = what[1], 0

    @rule(seconds=st.sampled_from([1, 600, 3600, 86_400, 20 * 86_400, -1, -600, -3600, -86_400, -20 * 86_400]))
    def jump(self, seconds: int) -> None:
        self.clock.now += timedelta(seconds=seconds)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.reopen()

    @rule(what=running, is_late=st.booleans())
    def crash(self, what: Any, is_late: bool) -> None:
        """What is on the disk at that moment is all that is left; `is_late`: the disk has not yet heard of a settlement."""
        self.ledger._books._put(lambda _: None).result()
        if is_late and what is not None and what[0] == self.life and what[1].cost_nano is None:
            gate = threading.Event()
            held = self.ledger._books._put(lambda _: gate.wait())
            self.loop.run_until_complete(self.ledger.settle(what[1], Tokens(0, 0, 0)))
            self.copy()
            gate.set()
            held.result()
        else:
            self.copy()
        self.ledger.close()
        self.reopen()

    def copy(self) -> None:
        after = self.folder / str(self.life + 1)
        after.mkdir()
        for name in ("spend.sqlite", "spend.sqlite-wal"):
            if (self.path.parent / name).exists():
                shutil.copy(self.path.parent / name, after)
        self.path = after / "spend.sqlite"

    def reopen(self) -> None:
        """All that was reserved is charged."""
        self.life += 1
        self.ledger = Ledger(self.settings, self.path, self.clock)

    def limits(self, tenant: str, backend: str) -> Iterator[tuple[str, str, str, int]]:
        for scope, name in (("tenant", tenant), ("backend", backend)):
            for period, amount in self.LIMITS.items():
                yield scope, name, period, int(float(amount) * 10) * NANO // 10

    def taken(self, scope: str, name: str, period: str, start: int) -> int:
        return sum(nano for r, nano in self.books.values() if getattr(r, scope) == name and start_of(period, r.at) == start)

    @invariant()
    def the_books_are_the_models(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for (period, start), window in self.ledger._windows.items():
            for scope, name, its_period, limit in [*self.limits("a", "one"), *self.limits("b", "two")]:
                if period == its_period:
                    taken = window.charged[scope, name] + window.reserved[scope, name]
                    assert taken == self.taken(scope, name, period, start)
                    assert taken <= limit


Money.TestCase.settings = how(max_examples=50, stateful_step_count=30, deadline=None)
TestMoney = Money.TestCase


def test_the_lock_is_given_back_where_a_start_fails(path: Path) -> None:
    """The next try finds the file as it is mended."""
    path.parent.mkdir()
    path.write_text("no database " * 100)
    for _ in range(2):
        with pytest.raises(LedgerError, match="not a database"):
            Ledger(settings(), path, Clock())
    os.remove(path)
    Ledger(settings(), path, Clock()).close()
