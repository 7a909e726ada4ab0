"""Under what name admission and fair shares are counted: accounts.

A tenant that the operator declared is its own account, and so are all callers without a key. Where no keys are declared anybody
can make as many tenants as they like, a key for each request; what is kept for them stays apart, but not what they may take:

1. At most ALIVE_MAX undeclared keys are accounts of their own at a time. One stays so while it has a live request, and LATELY_S
   after it was last seen.
2. All others share the account SHARED: one place in every order, one part of everything that is divided.
3. No other account is ever pushed out: neither one that is alive, nor callers without a key, nor a declared one.

So a thousand keys that are new with every request are nine accounts, beside whom everybody else has a part of a tenth."""

import time
from collections.abc import Callable

ALIVE_MAX = 8
LATELY_S = 10.0
SHARED = "key-shared"
"""No tenant can have this name: those of undeclared keys end in hexadecimal digits."""


class Accounts:
    """Who has an account of its own. `is_live` says whether requests of an account have not ended."""

    def __init__(
        self, is_live: Callable[[str], bool] = lambda account: False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_live = is_live
        self._clock = clock
        self._seen_s: dict[str, float] = {}
        """When each of them was last seen, in the order in which they got their accounts."""

    def of_undeclared(self, tenant: str) -> str:
        """The account of a tenant that its key alone made, which asks for something now."""
        now_s = self._clock()
        if tenant not in self._seen_s:
            for other in [t for t, seen_s in self._seen_s.items() if now_s - seen_s >= LATELY_S]:
                if not self._is_live(other):
                    del self._seen_s[other]
            if len(self._seen_s) >= ALIVE_MAX:
                return SHARED
        self._seen_s[tenant] = now_s
        return tenant
