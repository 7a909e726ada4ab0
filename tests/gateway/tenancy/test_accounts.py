"""Who has an account of its own where every key makes a tenant."""

from __future__ import annotations

from poise.gateway.tenancy.tenants import ALIVE_MAX, LATELY_S, SHARED, Accounts


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_key_for_each_request_is_nine_accounts_however_many_come() -> None:
    """Eight of their own and one for all others, at any moment."""
    clock = Clock()
    accounts = Accounts(clock=clock)
    for i in range(500):
        recent = {accounts.of_undeclared(f"key-{i}-{k}") for k in range(40)}
        assert len(recent) <= ALIVE_MAX + 1
        clock.now_s += 0.5
    assert SHARED in recent


def test_who_is_alive_keeps_its_account_beside_any_number_of_keys() -> None:
    """One that keeps asking, and one whose answer takes an hour."""
    clock, live = Clock(), {"key-long"}
    accounts = Accounts(live.__contains__, clock)
    assert accounts.of_undeclared("key-long") == "key-long"
    assert accounts.of_undeclared("key-steady") == "key-steady"
    for i in range(1000):
        clock.now_s += LATELY_S / 3
        accounts.of_undeclared(f"key-{i}")
        assert accounts.of_undeclared("key-steady") == "key-steady"
    assert accounts.of_undeclared("key-long") == "key-long"


def test_an_account_is_free_again_when_its_key_has_not_been_seen_for_a_while() -> None:
    """Nobody has to come back for it, and nothing of it is left."""
    clock, live = Clock(), {"key-0"}
    accounts = Accounts(live.__contains__, clock)
    for i in range(ALIVE_MAX):
        assert accounts.of_undeclared(f"key-{i}") == f"key-{i}"
    assert accounts.of_undeclared("key-late") == SHARED
    clock.now_s += LATELY_S
    assert accounts.of_undeclared("key-late") == "key-late"
    assert list(accounts._seen_s) == ["key-0", "key-late"]
