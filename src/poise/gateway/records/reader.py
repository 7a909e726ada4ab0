"""One client's stream of a record: a place in it, and the events from there on.

Events are made when there is room for them and when they are due, so a client that is behind costs a place and no
memory. Any place can be the first: a client that comes back names the id of the last event it saw."""

import asyncio
import re
import time
from dataclasses import dataclass

from poise.gateway.records.moments import End, Moment
from poise.gateway.records.pacing import Playout, Wake
from poise.gateway.records.record import Follower, Record
from poise.gateway.records.values import Logprob
from poise.gateway.records.writer import KEEP_ALIVE, PREFILLED, QUEUED, Writer, event_id
from poise.gateway.request.refusals import ApiError, invalid_value
from poise.gateway.text.answers import EntryKind
from poise.metrics.clients import StreamMetrics
from poise.wire.changes import ChangeKind

CHUNK_BYTES = 8192
"""A stream is given about that much at once."""
SENT_AGAIN = 0.2
"""A waiting stream gets another comment when the estimate has moved by more than this share of the one in the last comment."""
RUN_ENTRIES = 256
"""Most entries of one event."""
RUN_LOGPROBS = 16
"""The same, with log probabilities."""
PREFILL_SAID_S = 1.0
"""How far a long prompt is, is sent once in so long."""
_UNSENT = frozenset(("arrived", "held_to", "queued", "routed", "not_answered", "started", "prefill", "first_token", "finished"))
_NOW, _SET_TIMER = Wake.NOW, Wake.SET_TIMER
_TEXT, _NAME = EntryKind.TEXT, EntryKind.CALL_NAME
_PLACE = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class Place:
    """Entries, and ends of choices, that a client has been sent."""

    n_entries: int = 0
    n_ends: int = 0


def read_place(value: str, param: str, record: Record) -> Place:
    """From an event's id. Raises ApiError when it is none of this record's."""
    match = _PLACE.fullmatch(value)
    if match is None:
        raise invalid_value(param, "be a number of output tokens, as in the 'id' of a stream's events", value)
    place = Place(int(match[1]), int(match[2] or 0))
    if place.n_entries > record.n_entries or place.n_ends > len(record.ends):
        now = event_id(record.n_entries, len(record.ends)).decode()
        raise invalid_value(param, f"be at most {now}, all that there is so far", value)
    if place.n_ends and record.ends[place.n_ends - 1].n_entries > place.n_entries:
        raise invalid_value(param, "be the id of one of the stream's events", value)
    # Ends before its tokens were sent on the way; a client that counts tokens only need not know of them.
    passed = sum(end.n_entries < place.n_entries for end in record.ends)
    return Place(place.n_entries, max(place.n_ends, passed))


class Reader(Follower):
    """Writes a record's events, from `place` on, for as long as it grows. `take`, and `wait` when that had nothing."""

    def __init__(
        self,
        record: Record,
        metrics: StreamMetrics,
        *,
        delay_s: float = 0.0,
        comment_s: float = 0.0,
        place: Place | None = None,
        has_ids: bool = False,
    ) -> None:
        """`delay_s`: longest time that a token may be held to even the pace. `comment_s`: silence after which the stream is
        told that it lives; 0: never. `place`: it comes back, from there on. `has_ids`: its events have ids, by which it may come
        back."""
        super().__init__(record)
        start = place or Place()
        self.is_done = False
        """Everything was sent."""
        self._metrics = metrics
        self._cursor = start.n_entries
        self._n_ends = start.n_ends
        self._n_moments = len(record.timeline) if place is not None else 0
        self._sent_place: tuple[int, int] | None = None
        """Place in the queue and estimate, in ms, that were sent last."""
        self._prefill_said_s = 0.0
        """When it was sent how far the prompt is."""
        self._sent_at_s: list[float | None] = [None] * len(record.choices)
        self._writer = record.writer() if place is None else writer_behind(record, place.n_entries, place.n_ends)
        self._writer.has_ids = has_ids
        n_free = record.n_entries if place is not None else 0
        self._playout = Playout(record.owners, record.arrivals, delay_s, len(record.choices), n_free)
        self._timer: asyncio.TimerHandle | None = None
        self._is_opened = start != Place()
        self._comment_s = comment_s
        self._said_s = time.perf_counter()
        """When it was sent something last."""
        self._alarm: asyncio.TimerHandle | None = None
        """Rings when the silence has lasted too long: set late rather than often."""

    def notify(self) -> None:
        """Wake the stream, or see to it that it wakes when the next token is due."""
        wake = self._playout.news(self._cursor, time.perf_counter())
        if wake is _NOW:
            self._wakeup.set()
        elif wake is _SET_TIMER:
            self._set_timer()

    async def wait(self) -> None:
        """Until there may be something to take."""
        wake = self._playout.rest()
        if wake is _SET_TIMER:
            self._set_timer()
        if wake is not _NOW:
            if self._alarm is None and self._comment_s > 0:
                left_s = self._said_s + self._comment_s - time.perf_counter()
                self._alarm = asyncio.get_running_loop().call_later(left_s, self._ring_alarm)
            await self._wakeup.wait()

    def take(self) -> bytes:
        """The next events in the record's order, about as much as may be sent at once; nothing if there is nothing now."""
        record, out, size, now_s = self.record, [], 0, time.perf_counter()
        playout = self._playout
        playout.has_news = False
        if record.place is not None and self._is_news(record.place):
            self._sent_place = record.place
            position, eta_ms = record.place
            out.append(self._writer.note(QUEUED, None, {"position": position, "eta_ms": eta_ms}))
        if record.prefill is not None and now_s - self._prefill_said_s >= PREFILL_SAID_S:
            self._prefill_said_s = now_s
            out.append(self._writer.note(PREFILLED, None, record.prefill))
        if not self._is_opened and record.is_open:
            self._is_opened = True
            out.append(self._writer.opening(len(record.choices)))
        timeline, ends = record.timeline, record.ends
        while size < CHUNK_BYTES:
            if self._n_moments < len(timeline) and timeline[self._n_moments].n_entries <= self._cursor:
                piece = self._moment(timeline[self._n_moments])
            elif self._n_ends < len(ends) and ends[self._n_ends].n_entries <= self._cursor:
                piece = self._end(ends[self._n_ends])
            elif self._cursor < (stop := playout.free(now_s)):
                piece = self._run(stop, now_s)
            elif record.ended_s is not None and self._cursor == record.n_entries and not self.is_done:
                piece = self._close()
            else:
                break
            out.append(piece)
            size += len(piece)
        else:
            playout.has_news = True
        if not any(out) and 0 < self._comment_s <= now_s - self._said_s:
            out.append(self._writer.note(KEEP_ALIVE, None, {}))
        data = out[0] if len(out) == 1 else b"".join(out)
        if data:
            self._said_s = now_s
        return data

    def error_event(self, error: ApiError) -> bytes:
        """What a stream that cannot go on ends with."""
        self.is_done = True
        return self._writer.failed(self._cursor, self._n_ends, error)

    def leave(self, *, stuck: bool = False) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._playout.is_timer_set = None, False
        super().leave(stuck=stuck)

    def _set_timer(self) -> None:
        assert self._playout.next_s is not None
        delay_s = self._playout.next_s - time.perf_counter()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._playout.is_timer_set = None, False
        self._wakeup.set()

    def _ring_alarm(self) -> None:
        self._alarm = None
        self._wakeup.set()

    def _run(self, stop: int, now_s: float) -> bytes:
        """The next entries of one kind that belong to one choice, up to `stop` or to whatever else is to be sent before."""
        record, first = self.record, self._cursor
        stop = min(stop, first + (RUN_LOGPROBS if record.wants_logprobs else RUN_ENTRIES))
        if self._n_moments < len(record.timeline):
            stop = min(stop, record.timeline[self._n_moments].n_entries)
        if self._n_ends < len(record.ends):
            stop = min(stop, record.ends[self._n_ends].n_entries)
        choice, kind, last = record.owners[first], record.kinds[first], first + 1
        while last < stop and record.owners[last] == choice and record.kinds[last] == kind != _NAME:
            last += 1
        self._cursor = last
        text = record.texts[first] if last == first + 1 else "".join(record.texts[first:last])
        logprobs: list[Logprob] | None = None
        if record.wants_logprobs:
            logprobs = [token for some in record.logprobs[first:last] for token in some]
        if not (text or logprobs):
            return b""
        before_s, self._sent_at_s[choice] = self._sent_at_s[choice], now_s
        if before_s is not None:
            self._metrics.delivered(record.choices[choice].counts_as, now_s - before_s)
        return self._writer.text(last, self._n_ends, choice, text, logprobs, EntryKind(kind) if kind else _TEXT)

    def _end(self, end: End) -> bytes:
        self._n_ends += 1
        logprobs = end.logprobs if self.record.wants_logprobs else None
        return self._writer.end(self._cursor, self._n_ends, end.choice, end.reason, end.text, logprobs)

    def _close(self) -> bytes:
        if self.record.failure is not None:
            return self.error_event(self.record.failure)
        self.is_done = True
        return self._writer.close(self._cursor, self._n_ends)

    def _moment(self, moment: Moment) -> bytes:
        """The note that says it; empty if none does."""
        self._n_moments += 1
        if moment.what in _UNSENT:
            return b""
        if moment.what == ChangeKind.DOWNGRADE:
            self._writer.downgrade()
        index = moment.choice if len(self.record.choices) > 1 else None
        return self._writer.note(moment.what, index, moment.detail)

    def _is_news(self, place: tuple[int, int]) -> bool:
        if self._sent_place is None:
            return True
        position, eta_ms = self._sent_place
        return place[0] != position or abs(place[1] - eta_ms) > SENT_AGAIN * eta_ms


def writer_behind(record: Record, n_entries: int, n_ends: int) -> Writer:
    """The writer of a reader that has been sent everything up to a place: a stream is taken up again."""
    writer = record.writer()
    if record.downgraded:
        writer.downgrade()
    if n_entries or n_ends:
        writer.opening(len(record.choices))  # came before that
    runs: list[list[tuple[int, list[str]]]] = [[] for _ in record.choices]
    opened = {end.choice for end in record.ends[:n_ends]}
    for i in range(n_entries):
        of_choice, kind, text = runs[record.owners[i]], record.kinds[i], record.texts[i]
        if text and (not of_choice or of_choice[-1][0] != kind or kind == EntryKind.CALL_NAME):
            of_choice.append((kind, [text]))
        elif text:
            of_choice[-1][1].append(text)
        if record.wants_logprobs and record.logprobs[i]:
            opened.add(record.owners[i])
    for choice, of_choice in enumerate(runs):
        for kind, texts in of_choice or ([(EntryKind.TEXT, [])] if choice in opened else []):
            writer.passed(choice, "".join(texts), EntryKind(kind))
    return writer
