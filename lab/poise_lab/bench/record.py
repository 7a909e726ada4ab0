"""What was measured of one request, and the figures that follow from it. Pure: all times are given.

Times are integer nanoseconds. `start_ns` counts from the start of the load; everything else counts from `start_ns`.

Coordinated omission: an open-loop client's request was to be sent at a planned moment, and its user waits from then on. So its
TTFT and end to end count from the plan: a client that lags cannot hide what it could not send. A closed-loop client sends when it
can; where the scenario gives it a rate, the corrected figures count from the moment at which each request was due."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from poise_lab.scenarios.model import RequestClass

OK = "ok"
CANCELLED = "cancelled"
UNFINISHED = "unfinished"
REFUSED = "refused"
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

    status     pending | ok | cancelled | unfinished | disconnected | refused (a malformed one) | error:<http code>/<type>
    late_ns    sent so much later than it was planned (open loop) or due (closed loop with a rate)
    chunks_ns  when each chunk with text arrived; chunks that one read delivered share a time
    end_ns     when the answer ended, the client left, or the round was cut"""

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
    turn: int = 0
    """Of a conversation; 0: its first, or the only one."""
    is_open_loop: bool = False
    is_paced: bool = False
    is_slow_reader: bool = False
    is_malformed: bool = False

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
        """Sending (open loop: planned sending) to first text. A request cut while it waited has waited at least so long; a
        failed one has no figure."""
        return self._first_text(self.late_ns if self.is_open_loop else 0)

    def ttft_corrected_ms(self) -> Figure | None:
        """The same from the moment at which a paced closed-loop client should have sent it."""
        return self._first_text(self.late_ns) if self.is_paced else None

    def ttft_later_ms(self) -> Figure | None:
        """The same of a conversation's second and later turns: what was computed before is wanted again."""
        return self.ttft_ms() if self.turn else None

    def e2e_later_ms(self) -> Figure | None:
        """End to end of those."""
        return self.e2e_ms() if self.turn else None

    def gaps_ms(self) -> list[float]:
        """The times between chunks with text, as they were. Those of a slow reader are its own doing."""
        if self.is_slow_reader:
            return []
        return [(b - a) / NS_PER_MS for a, b in pairwise(self.chunks_ns)]

    def gap_p99_ms(self) -> float:
        """The 99th percentile of this request's own gaps: the smallest one that 99 of 100 do not exceed; 0 without any."""
        gaps = sorted(self.gaps_ms())
        return gaps[math.ceil(0.99 * len(gaps)) - 1] if gaps else 0.0

    def max_gap_ms(self) -> Figure | None:
        """The longest gap. The silence before a cut counts when it is longer than any gap, as a lower bound."""
        if self.is_slow_reader:
            return None
        longest = max(self.gaps_ms(), default=None)
        if self.status == UNFINISHED and self.chunks_ns:
            silence = (self.end_ns - self.chunks_ns[-1]) / NS_PER_MS
            if longest is None or silence > longest:
                return Figure(silence, ">=")
        return None if longest is None else Figure(longest)

    def e2e_ms(self) -> Figure | None:
        """Sending (open loop: planned sending) to the end of the answer: complete answers, and as a lower bound those that
        were cut."""
        return self._whole(self.late_ns if self.is_open_loop else 0)

    def e2e_corrected_ms(self) -> Figure | None:
        """The same from the moment at which a paced closed-loop client should have sent it."""
        return self._whole(self.late_ns) if self.is_paced else None

    def decode_tokens_per_s(self) -> float | None:
        """(n - 1) / (last - first): the pace of the stream once it runs."""
        if self.is_slow_reader or len(self.chunks_ns) < 2 or self.chunks_ns[-1] <= self.chunks_ns[0]:
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
            "turn": self.turn,
            "status": self.status,
            "slow_reader": self.is_slow_reader,
            "malformed": self.is_malformed,
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

    def _first_text(self, waited_ns: int) -> Figure | None:
        if self.chunks_ns:
            return Figure((waited_ns + self.chunks_ns[0]) / NS_PER_MS)
        if self.status == UNFINISHED:
            return Figure((waited_ns + self.end_ns) / NS_PER_MS, ">=")
        return None

    def _whole(self, waited_ns: int) -> Figure | None:
        if self.is_slow_reader or self.status not in (OK, UNFINISHED):
            return None
        return Figure((waited_ns + self.end_ns) / NS_PER_MS, "" if self.status == OK else ">=")
