"""Operators on this machine: the server's token, and codes with which their browsers get it.

Commands read the token from its file (`poise.operator_token`). A browser cannot: `poise dashboard` asks for a code with the
token and prints an address that ends in it, and the page gives the code back for the token. A code works once and for a minute,
so that what stays in the history of a browser, or is read over somebody's shoulder, opens nothing."""

import hmac
import secrets
import time
from collections.abc import Callable
from hashlib import sha256

CODE_LIFE_S = 60.0
CODES_MAX = 8
"""Codes at once; the oldest gives way."""


class LocalOperators:
    """Checks the token of this server and gives out login codes. An empty token is held by nobody."""

    def __init__(self, token: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._codes: dict[bytes, float] = {}
        """When each code ends, by its hash, the oldest first."""

    def holds_token(self, presented: str) -> bool:
        """Whether this is the token; compared in constant time."""
        same = hmac.compare_digest(digest(presented), digest(self._token))
        return bool(self._token) and same

    def new_code(self) -> str:
        code = secrets.token_urlsafe(32)
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        self._codes[digest(code)] = self._clock() + CODE_LIFE_S
        return code

    def redeem(self, code: str) -> str | None:
        """The token for a code that was given out, is young and was not used; it is used up by this."""
        ends_s = self._codes.pop(digest(code), None)
        return self._token if ends_s is not None and self._clock() < ends_s else None


def digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()
