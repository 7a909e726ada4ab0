"""What happened to one API request, as it is told once when it has ended: to the tenants' metrics and to the traces. No text.

Times are of the gateway's clock `time.perf_counter`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EVENTS_MAX = 128
"""Events that are kept of a choice; an operator could pause and resume one for ever."""

_SEGMENT_ENDS = ".!?\n。！？"


@dataclass(slots=True)
class ChoiceStory:
    """One engine request. `events` are (time, name): queued, started, first_token, changes by their names, finished."""

    index: int
    events: list[tuple[float, str]] = field(default_factory=list)
    outcome: str = ""
    wait_s: float | None = None
    n_cached: int = 0
    n_output: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    segment_s: float | None = None
    """When the first sentence or line was complete."""
    ended_s: float = 0.0

    def note(self, now_s: float, name: str) -> None:
        if len(self.events) < EVENTS_MAX:
            self.events.append((now_s, name))

    def started(self, now_s: float, wait_s: float, n_cached: int) -> None:
        self.wait_s, self.n_cached = wait_s, n_cached
        self.note(now_s, "started")

    def tokens(self, now_s: float, n_tokens: int) -> None:
        if self.first_s is None:
            self.first_s = now_s
            self.note(now_s, "first_token")
        self.last_s = now_s
        self.n_output += n_tokens

    def says(self, now_s: float, text: str) -> None:
        """Text that can be shown."""
        if self.segment_s is None and any(character in _SEGMENT_ENDS for character in text):
            self.segment_s = now_s

    def ended(self, now_s: float, outcome: str) -> None:
        """It is over. The first word counts: a choice that had ended is not cancelled afterwards."""
        if not self.outcome:
            self.outcome, self.ended_s = outcome, now_s
            self.note(now_s, f"finished: {outcome}")

    @property
    def is_complete(self) -> bool:
        """The answer is whole."""
        return self.outcome in ("stop", "length")

    @property
    def per_token_s(self) -> float | None:
        """Mean time of an output token after the first one."""
        if self.first_s is None or self.n_output < 2:
            return None
        return (self.last_s - self.first_s) / (self.n_output - 1)


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One API request with all of its choices."""

    request_id: str
    tenant: str
    request_class: str
    operation: str
    """In OpenTelemetry's words: "chat" or "text_completion"."""
    traceparent: str
    """What the caller sent in the header of that name, "" if nothing."""
    arrived_s: float
    n_prompt: int
    choices: list[ChoiceStory]
