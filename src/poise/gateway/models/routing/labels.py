"""The label of a request: the highest of what its key, its tenant, its header, its model's name, its conversation and the rules
over its text give it. Each of them can raise it, and none can lower it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from poise.config.hybrid import EgressSettings
from poise.config.kinds import DataClass
from poise.gateway.models.routing.conversations import Conversations
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.headers import DATA_CLASS
from poise.gateway.request.labels import Label, label_of
from poise.gateway.request.refusals import ApiError, shown


@dataclass(frozen=True, slots=True)
class Labelled:
    """`sources`: who gave it this label, as `key`, `tenant`, `header`, `model`, `conversation` and `rule:card`.

    `is_named`: a header names one."""

    label: Label
    sources: tuple[str, ...]
    is_named: bool


@dataclass(frozen=True, slots=True)
class Claims:
    """What is known of a request before its text is read. `key`: the label of the caller's key; `header`: what it has sent."""

    tenant: str
    floor: Label
    key: Label = Label.PUBLIC
    header: Label | None = None


def claimed(header: str) -> Label | None:
    """The label that a caller claims; None where the header is empty or missing. Raises ApiError."""
    try:
        return label_of(header.strip().lower()) if header.strip() else None
    except KeyError:
        known = ", ".join(label.shown for label in Label)
        message = f"'{DATA_CLASS}' must be one of {known}, but is {shown(header)}. Send one of these, or leave the header out."
        raise ApiError(400, "invalid_data_class", message) from None


def label_of_model(names: Iterable[str], patterns: Mapping[str, DataClass]) -> Label:
    """The highest one of all patterns that any of a model's names has."""
    found = (label_of(label) for pattern, label in patterns.items() for name in names if name and fnmatchcase(name, pattern))
    return max(found, default=Label.PUBLIC)


def label_of_request(
    claims: Claims,
    request: Generate,
    hits: Iterable[str],
    conversations: Conversations,
    settings: EgressSettings,
    patterns: Mapping[str, DataClass],
    names: Iterable[str] = (),
    *,
    is_sent: bool = True,
) -> Labelled:
    """`hits`: names of the rules that found something; `names`: of the model, beside the one that the request has for it. The
    conversation is remembered with the label where that is above what its tenant's requests have anyway, and it `is_sent`."""
    digests = conversations.digests(request.prompt.messages) if isinstance(request.prompt, Conversation) else []
    given = [
        ("tenant", claims.floor),
        ("key", claims.key),
        ("header", claims.header or Label.PUBLIC),
        ("model", label_of_model((request.model, *names), patterns)),
        ("conversation", conversations.label(claims.tenant, digests)),
        *((f"rule:{rule}", label_of(settings.hit_label)) for rule in hits),
    ]
    label = max(label for _, label in given)
    if is_sent and label > claims.floor:
        conversations.remember(claims.tenant, digests, label)
    return Labelled(label, tuple(source for source, one in given if one == label), claims.header is not None)
