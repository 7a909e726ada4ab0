"""The last ten minutes of the server, a sample a second, as dashboards ask for them.

All samples together are a megabyte: they are sent in pieces, so that a client that takes nothing holds no copy of them here."""

from collections.abc import Iterator, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.api.operation import Described, Operation, parameter
from poise.gateway.condition.history import History
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import FRESH, JSON, sent_in_pieces
from poise.gateway.request.refusals import invalid_value
from poise.gateway.tasks.pulse import PERIOD_S
from poise.gateway.tenancy.tenants import Tenants
from poise.metrics.sample import Sample

WHOLE_SAMPLES, PIECE_SAMPLES = 60, 16
"""An answer with up to so many samples is sent in one; of a longer one each piece has so many."""
_SINCE_DIGITS_MAX = 15
_NEXT = {"type": "string", "pattern": f"^[0-9]{{1,{_SINCE_DIGITS_MAX}}}$"}
_SINCE = parameter("since", "The `next` of an earlier answer: only the samples from that one on.", _NEXT)


class HistoryBody(msgspec.Struct, frozen=True):
    period_s: float
    next: int
    samples: list[Sample]


class HistoryAnswer:
    """Answers /status/history."""

    def __init__(self, history: History, tenants: Tenants) -> None:
        self._history = history
        self._tenants = tenants

    def operations(self) -> list[Operation]:
        summary, answers = "The last ten minutes, a sample a second", {200: Described(HistoryBody)}
        return [Operation("GET", "/status/history", self.answer, summary, [400, 401], [_SINCE], answers=answers)]

    async def answer(self, request: Request) -> Response:
        """The samples from `since` on, the oldest first. A `since` of a server before this one gets all there are."""
        self._tenants.check_status(credentials_of(request))
        samples, following = self._history.since(_since(request.query_params.get("since", "0")))
        if len(samples) > WHOLE_SAMPLES:
            return sent_in_pieces(_pieces(following, samples), FRESH)
        return Response(b"".join(_pieces(following, samples)), headers=FRESH, media_type=JSON)


def _pieces(following: int, samples: Sequence[bytes]) -> Iterator[bytes]:
    """A HistoryBody in pieces. `following`: the number of the sample that is to come."""
    yield b'{"period_s":%g,"next":%d,"samples":[' % (PERIOD_S, following)
    for begin in range(0, len(samples), PIECE_SAMPLES):
        yield (b"," if begin else b"") + b",".join(samples[begin : begin + PIECE_SAMPLES])
    yield b"]}"


def _since(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= _SINCE_DIGITS_MAX):
        raise invalid_value("since", "be the 'next' of an earlier answer, a number of 0 or more", value)
    return int(value)
