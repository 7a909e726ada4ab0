"""The permit without which nothing is sent to another server. Only `poise.gateway.models.routing.policy` makes them: a contract
and a test see to it that nobody else names `SEAL`."""

from dataclasses import InitVar, dataclass
from enum import StrEnum

from poise.gateway.request.labels import Label


class Purpose(StrEnum):
    ANSWER = "answer"
    """A request's text is sent."""
    HEALTH = "health"
    """Is the server there, and what can it do: nothing of any request is sent."""


SEAL = object()


@dataclass(slots=True)
class Permit:
    """Leave to send one thing to one server, once."""

    backend: str
    purpose: Purpose
    label: Label
    sources: tuple[str, ...]
    """What gave it its label: names of rules and settings, never what they found."""
    reason: str
    """Why it is sent there, as X-Poise-Route-Reason has it."""
    tenant: str
    request_id: str
    seal: InitVar[object]
    """Not kept: a permit cannot be made of another one either."""
    is_used: bool = False

    def __post_init__(self, seal: object) -> None:
        assert seal is SEAL, "only the policy makes permits"
