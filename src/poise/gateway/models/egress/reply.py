"""What comes back from another server: an answer piece by piece, within bounds of time and size, or why there is none."""

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal, Protocol

from poise.gateway.models.egress.hosts import Host

Kind = Literal["closed", "no_audit", "connect", "tls", "redirect", "timeout", "too_large", "encoding", "broken", "status"]
RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
UNSENT = ("closed", "no_audit", "connect", "tls")
ERROR_BYTES_MAX = 1 << 16
ANSWER_BYTES_MAX = 1 << 26
RETRY_AFTER_MAX_S = 86_400.0
DONE = "done"
_REST_S = 0.1
"""How long the end of an answer is waited for whose content is complete: a connection that has come to it can be used again."""


class EgressError(Exception):
    """Nothing (more) comes of it. The message is for operators: neither a key is in it, nor text of a request or an answer.

    `body`: what the server said of an error, at most 64 kB; it may quote the request."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        body: bytes = b"",
        has_begun: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = body
        self.is_sent = kind not in UNSENT
        """The server may have had the request."""
        may_pass = kind in ("connect", "timeout", "broken") and not has_begun
        self.is_retryable = may_pass or (kind == "status" and status in RETRYABLE)
        """Another server, or this one later, may answer; no byte of an answer has come."""


class Failure(Exception):
    """A connection's: of which kind, and why in a few words."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class Answer(Protocol):
    """What a connection gives of an answer."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """What has come, at least a byte; empty: it is over. Raises Failure."""

    def close(self) -> None: ...


class Tokens(Protocol):
    @property
    def prompt(self) -> int: ...

    @property
    def cached(self) -> int: ...

    @property
    def output(self) -> int: ...


class Reply:
    """An answer as it comes, with a status from 200 to 299."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._answer: Answer | None = None
        self.n_sent = self.n_received = 0
        self.outcome = DONE
        """What the log and the metrics call it, unless it ends by an exception; whoever reads it may know better."""
        self.tokens: Tokens | None = None
        self.cost_nano = 0
        self._line_left_s = host.first_s
        self._progress_left_s = max(host.first_s, host.gap_s)

    @property
    def status(self) -> int:
        return self._answer.status if self._answer is not None else 0

    @property
    def headers(self) -> Mapping[str, str]:
        return self._answer.headers if self._answer is not None else {}

    def settle(self, tokens: Tokens, cost_nano: int) -> None:
        """What it took, for the log and the metrics."""
        self.tokens, self.cost_nano = tokens, cost_nano

    def progressed(self) -> None:
        """Something of an answer has come: the time for the next of it begins."""
        self._progress_left_s = max(self._host.first_s, self._host.gap_s)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises EgressError. Time in which nobody asks for more does not count."""
        while data := await self._read():
            yield data

    async def body(self, bytes_max: int) -> bytes:
        """All of it. Raises EgressError, also where it is larger."""
        found = bytearray()
        async for data in self.chunks():
            found += data
            if len(found) > bytes_max:
                raise self._error("too_large", f"answered with more than {bytes_max} bytes")
        return bytes(found)

    def begin(self, answer: Answer) -> None:
        self._answer = answer

    async def error_body(self) -> bytes:
        """The beginning of it, whatever happens then."""
        found = bytearray()
        with suppress(EgressError):
            async for data in self.chunks():
                found += data
                if len(found) > ERROR_BYTES_MAX:
                    break
        return bytes(found[:ERROR_BYTES_MAX])

    async def finish(self) -> None:
        """The content was complete: its last bytes are taken, if they are there."""
        with suppress(EgressError, TimeoutError):
            async with asyncio.timeout(_REST_S):
                await self._read()

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()

    async def _read(self) -> bytes:
        assert self._answer is not None
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(self._line_left_s, self._progress_left_s))):
                data = await self._answer.read()
        except TimeoutError:
            raise self._error("timeout", "sent nothing more of an answer in time") from None
        except Failure as failure:
            raise self._error(failure.kind, f"broke the answer off ({failure.why})") from None
        took_s = time.monotonic() - began_s
        is_whole = not self.n_received or b"\n" in data
        self._line_left_s = self._host.gap_s if is_whole else self._line_left_s - took_s
        self._progress_left_s -= took_s
        self.n_received += len(data)
        if self.n_received > ANSWER_BYTES_MAX:
            raise self._error("too_large", f"answered with more than {ANSWER_BYTES_MAX} bytes")
        return data

    def _error(self, kind: Kind, what: str) -> EgressError:
        return error_of(self._host, kind, what, has_begun=self.n_received > 0)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """When to come again, as seconds, milliseconds or a date; by the server's clock, where it tells. None: it does not say."""
    with suppress(ValueError):
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]) / 1000)
        return _bounded(float(headers.get("Retry-After", "")))
    with suppress(ValueError, TypeError, OverflowError):
        then, sent = (email.utils.parsedate_to_datetime(headers[name]) if name in headers else None for name in _DATES)
        return _bounded((then - (sent or now)).total_seconds()) if then is not None else None
    return None


_DATES = ("Retry-After", "Date")


def _bounded(seconds: float) -> float | None:
    return min(max(0.0, seconds), RETRY_AFTER_MAX_S) if seconds == seconds else None


def error_of(host: Host, kind: Kind, what: str, **more: Any) -> EgressError:
    return EgressError(kind, f"backends.{host.backend} ({host.shown}) {what}", **more)
