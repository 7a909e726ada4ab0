"""What was measured of one request, and the figures that follow from it. Pure: all times are given.

Times are integer nanoseconds. `start_ns` counts from the start of the load; everything else counts from `start_ns`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from poise.scenarios import RequestClass

OK = "ok"
CANCELLED = "cancelled"
UNFINISHED = "unfinished"
DISCONNECTED = "disconnected"
PENDING = "pending"

Bound = Literal["", ">=", "<=", "~"]
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and what is known about it: "" exact, ">=" a lower bound, "<=" an upper bound, "~" neither is certain."""

    value: float
    bound: Bound = ""


@dataclass(slots=True)
class RequestRecord:
    """One request, written to while it runs.

    status     pending | ok | cancelled | unfinished | disconnected | error:<http code>/<type>
    chunks_ns  when each chunk with text arrived; chunks that one read delivered share a time
    end_ns     when the answer ended, the client left, or the round was cut
    """

    client: str
    tenant: str
    request_class: RequestClass
    instance: int
    index: int
    n_prompt_planned: int
    n_output_planned: int
    start_ns: int
    late_ns: int = 0
    status: str = PENDING
    chunks_ns: list[int] = field(default_factory=list)
    end_ns: int = 0
    n_prompt_reported: int | None = None
    n_output_reported: int | None = None
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.status == DISCONNECTED or self.status.startswith("error:")

    @property
    def n_prompt_tokens(self) -> int:
        """From the usage, which a cancelled or cut request never sees: then as planned, without the chat template."""
        return self.n_prompt_planned if self.n_prompt_reported is None else self.n_prompt_reported

    @property
    def n_output_tokens(self) -> int:
        """From the usage, else one for each chunk."""
        return len(self.chunks_ns) if self.n_output_reported is None else self.n_output_reported

    @property
    def short(self) -> bool:
        """The server ended the answer before the length that was asked for, so it did less work than planned."""
        return self.status == OK and self.n_output_tokens < self.n_output_planned

    def ttft_ms(self) -> Figure | None:
        """Sending to first text. A request cut while it waited has waited at least so long; a failed one has no figure."""
        if self.chunks_ns:
            return Figure(self.chunks_ns[0] / NS_PER_MS)
        if self.status == UNFINISHED:
            return Figure(self.end_ns / NS_PER_MS, ">=")
        return None

    def gaps_ms(self) -> list[float]:
        """The times between chunks with text, as they were."""
        return [(b - a) / NS_PER_MS for a, b in zip(self.chunks_ns, self.chunks_ns[1:], strict=False)]

    def max_gap_ms(self) -> Figure | None:
        """The longest gap. The silence before a cut counts when it is longer than any gap, as a lower bound."""
        longest = max(self.gaps_ms(), default=None)
        if self.status == UNFINISHED and self.chunks_ns:
            silence = (self.end_ns - self.chunks_ns[-1]) / NS_PER_MS
            if longest is None or silence > longest:
                return Figure(silence, ">=")
        return None if longest is None else Figure(longest)

    def e2e_ms(self) -> Figure | None:
        """Sending to the end of the answer: complete answers, and as a lower bound those that were cut."""
        if self.status == OK:
            return Figure(self.end_ns / NS_PER_MS)
        if self.status == UNFINISHED:
            return Figure(self.end_ns / NS_PER_MS, ">=")
        return None

    def decode_tokens_per_s(self) -> float | None:
        """(n - 1) / (last - first): the pace of the stream once it runs."""
        if len(self.chunks_ns) < 2 or self.chunks_ns[-1] <= self.chunks_ns[0]:
            return None
        return (self.n_output_tokens - 1) * NS_PER_S / (self.chunks_ns[-1] - self.chunks_ns[0])

    def output_tokens_within(self, window_ns: int) -> float:
        """Tokens that arrived before `window_ns` of the load. Where the usage reports more tokens than there were chunks
        (or fewer), each chunk counts as an equal part of them."""
        if not self.chunks_ns:
            return 0.0
        n_chunks = sum(1 for chunk_ns in self.chunks_ns if self.start_ns + chunk_ns <= window_ns)
        return n_chunks * self.n_output_tokens / len(self.chunks_ns)

    def prompt_tokens_within(self, window_ns: int) -> int:
        """The prompt counts as processed when its first token arrives: all of it or nothing."""
        return self.n_prompt_tokens if self.chunks_ns and self.start_ns + self.chunks_ns[0] <= window_ns else 0

    def as_json(self) -> dict[str, object]:
        """Everything measured, in milliseconds to the microsecond."""
        return {
            "client": self.client,
            "instance": self.instance,
            "index": self.index,
            "status": self.status,
            "start_ms": round(self.start_ns / NS_PER_MS, 3),
            "late_ms": round(self.late_ns / NS_PER_MS, 3),
            "end_ms": round(self.end_ns / NS_PER_MS, 3),
            "chunks_ms": [round(chunk_ns / NS_PER_MS, 3) for chunk_ns in self.chunks_ns],
            "prompt_tokens_planned": self.n_prompt_planned,
            "prompt_tokens": self.n_prompt_reported,
            "output_tokens_planned": self.n_output_planned,
            "output_tokens": self.n_output_reported,
            "message": self.message,
        }
