"""Callers that nobody knows: counted, logged in one audit line a minute, and slowed down.

A line for each would let whoever reaches the port write to the disk. An address that goes on is answered with 429 instead of 401
once its allowance is used up; that is after its key was looked at, so that a known key is never refused for its neighbours'."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from poise.gateway.request.refusals import SHOULD_RETRY, ApiError, retry_after
from poise.gateway.tenancy.exposure import site_of

TELL_EVERY_S = 60.0
BURST = 20.0
"""Refusals of one address in a row that are answered as what they are."""
PER_S = 1.0
"""And how many a second after those."""
ADDRESSES_MAX = 4096
"""Addresses with an allowance of their own; who was refused longest ago gives way."""


class Strangers:
    """Counts callers who are not known. `put` is called with each minute's line for the audit log."""

    def __init__(self, put: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._put = put
        self._clock = clock
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left to an address, and since when."""
        self._codes: Counter[str] = Counter()
        self._addresses: set[str] = set()
        self._n_throttled = 0
        self._began_s: float | None = None
        self.on_refusal: Callable[[], None] = lambda: None
        """Called for each."""

    def refused(self, address: str, error: ApiError) -> ApiError:
        """The error for a caller who is not known: `error`, or 429 once there were too many."""
        now_s, place = self._clock(), site_of(address)
        self.on_refusal()
        if self._began_s is None:
            self._began_s = now_s
        self._codes[error.code] += 1
        if len(self._addresses) < ADDRESSES_MAX:
            self._addresses.add(place)
        if self._may(place, now_s):
            return error
        self._n_throttled += 1
        headers = retry_after(1 / PER_S) | {SHOULD_RETRY: "false"}  # the key stays unknown
        message = "Too many requests with keys that are not known came from your address. "
        message += "Check the key, and try again in about 1 s."
        return ApiError(429, "too_many_unknown_keys", message, headers=headers)

    def look(self) -> None:
        """Once a second or so: tell of a minute that is over."""
        if self._began_s is not None and self._clock() - self._began_s >= TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Write the line with what was counted since the last one, if anything was."""
        if self._began_s is None:
            return
        counts = {"refused": self._codes.total(), "throttled": self._n_throttled, "addresses": len(self._addresses)}
        errors, seconds = dict(sorted(self._codes.items())), round(self._clock() - self._began_s, 1)
        self._put("unknown_callers", **counts, errors=errors, seconds=seconds)
        self._codes, self._addresses, self._n_throttled, self._began_s = Counter(), set(), 0, None

    def _may(self, place: str, now_s: float) -> bool:
        left, since_s = self._allowances.pop(place, (BURST, now_s))
        left = min(BURST, left + (now_s - since_s) * PER_S)
        may = left >= 1.0
        self._allowances[place] = (left - may, now_s)
        if len(self._allowances) > ADDRESSES_MAX:
            self._allowances.popitem(last=False)
        return may
