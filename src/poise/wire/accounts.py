"""What is owed and left on accounts, sent by one engine for the next: the gateway keeps it and does not look into it."""

import msgspec

from poise.scheduler.fairness.accounts import Account


class Accounts(msgspec.Struct, frozen=True, array_like=True, tag="accounts"):
    """Gateway to engine, before any Submit, as the one before it left them; then engine to gateway, with each Status.

    `at_ns`: when it was so, by the monotonic clock that all processes of a host share."""

    at_ns: int
    accounts: list[Account]

    def without(self, name: str) -> "Accounts":
        return Accounts(self.at_ns, [account for account in self.accounts if account.name != name])
