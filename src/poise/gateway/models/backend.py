"""The port to whatever answers requests, of which an engine on this host is one.

    job = await backend.prepare(request, origin)  # or ApiError
    record = Record(origin, ..., job.n_choices)
    job.start(record)

Until `start` nothing is begun: who gives the job up leaves nothing behind. From then on the record ends exactly once, whatever
happens: with every choice at its end, with an error, or because its work was stopped."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from poise.gateway.records.record import Origin, Record
from poise.gateway.records.spans import story_of
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError
from poise.metrics.gateway import GatewayMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Card:
    """What is said of a model. `context_length` None: not known yet. `others`: further models that it may be asked for."""

    name: str
    context_length: int | None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendState:
    """Whether requests can be taken now; if not, when to ask again."""

    is_ready: bool
    retry_after_s: float


class Job(Protocol):
    """A request that can be served."""

    @property
    def n_choices(self) -> int:
        """How many choices its record is to have."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever a repeated seed depends on."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What the response is to say of how its prompt was made."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that have no effect on this model."""

    @property
    def is_late(self) -> bool:
        """Background work comes first, too long to leave a stream without a sign of life: a summary of older turns."""

    def start(self, record: Record) -> None:
        """Begin, once. Whoever follows the record hears what comes of it; `record.work` is what can be done about it."""


class Backend(Protocol):
    """Whatever answers requests for one model."""

    @property
    def card(self) -> Card: ...

    @property
    def state(self) -> BackendState: ...

    async def prepare(self, request: Generate, origin: Origin) -> Job:
        """Everything that can be known before anything is computed. Raises ApiError when the request cannot be served."""


def close(record: Record, metrics: GatewayMetrics, failure: ApiError | None, by: str = "") -> None:
    """End a record, write the books and a line in the log. What nobody has taken is counted among the rejected, by who asked.
    `by`: the server that has answered, if not this one."""
    origin = record.origin
    elapsed_s = time.perf_counter() - origin.arrived_s
    record.end(failure)
    if record.is_open or failure is None:
        metrics.ended(story_of(record))
    usage, outcome = record.usage(), record.outcome if failure is None or record.is_open else failure.code
    who = f"[{origin.request_id}] {origin.tenant} {origin.request_class}{by and ', ' + by}"
    what = f"{usage.prompt_tokens} prompt and {usage.completion_tokens} output tokens"
    log.info("%s: %s, %s, %.0f ms", who, what, outcome, elapsed_s * 1000)
