"""The label of a request: the highest that anybody gives it, and who that was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config.hybrid import EgressSettings
from poise.gateway.models.routing.conversations import Conversations
from poise.gateway.models.routing.labels import Claims, Labelled, claimed, label_of_model, label_of_request
from poise.gateway.request.generate import Conversation
from poise.gateway.request.labels import Label
from poise.gateway.request.refusals import ApiError
from poise.wire.text import Message
from tests.gateway.models.routing.requests import generate

RESTRICTED = EgressSettings()
HELLO = [Message("user", "hello")]


def labelled(claims: Claims, *hits: str, known: Conversations | None = None, model: str = "m", **patterns: str) -> Labelled:
    request = generate(model=model, prompt=Conversation(HELLO))
    return label_of_request(claims, request, hits, known or Conversations(), RESTRICTED, patterns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "hits", "label", "sources"),
    [
        (Claims("a", Label.CONFIDENTIAL), (), Label.CONFIDENTIAL, ("tenant",)),
        (Claims("a", Label.PUBLIC, Label.INTERNAL), (), Label.INTERNAL, ("key",)),
        (Claims("a", Label.PUBLIC, header=Label.RESTRICTED), (), Label.RESTRICTED, ("header",)),
        (Claims("a", Label.CONFIDENTIAL, header=Label.PUBLIC), (), Label.CONFIDENTIAL, ("tenant",)),
        (Claims("a", Label.PUBLIC), ("card", "unscanned"), Label.RESTRICTED, ("rule:card", "rule:unscanned")),
        (Claims("a", Label.INTERNAL, Label.INTERNAL, Label.INTERNAL), (), Label.INTERNAL, ("tenant", "key", "header")),
    ],
)
def test_who_gives_it(claims: Claims, hits: tuple[str, ...], label: Label, sources: tuple[str, ...]) -> None:
    """Of several, those that give the highest one."""
    assert labelled(claims, *hits) == Labelled(label, sources, claims.header is not None)


def test_by_the_models_name() -> None:
    """The highest of all patterns, for the name that was asked for and for those of the model."""
    patterns = {"*": "public", "legal-*": "confidential", "legal-x": "restricted", "own": "internal"}
    names = {"legal-a": Label.CONFIDENTIAL, "legal-x": Label.RESTRICTED, "b": Label.PUBLIC, "": Label.PUBLIC}
    for name, label in names.items():
        assert label_of_model([name], patterns) == label  # type: ignore[arg-type]
    request = generate(model="b", prompt=Conversation(HELLO))
    found = label_of_request(Claims("a", Label.PUBLIC), request, (), Conversations(), RESTRICTED, patterns, ["own"])  # type: ignore[arg-type]
    assert (found.label, found.sources) == (Label.INTERNAL, ("model",))


def test_a_conversation_stays_what_it_was() -> None:
    """Whoever gave the label, and only where it is above the tenant's own."""
    known = Conversations()
    labelled(Claims("a", Label.CONFIDENTIAL), known=known)
    assert known.n_kept == 0
    labelled(Claims("a", Label.PUBLIC, header=Label.INTERNAL), known=known)
    assert labelled(Claims("a", Label.PUBLIC), known=known) == Labelled(Label.INTERNAL, ("conversation",), False)
    assert labelled(Claims("b", Label.PUBLIC), known=known).label == Label.PUBLIC


@pytest.mark.parametrize("name", ["public", "internal", "confidential", "restricted", " Restricted "])
def test_the_header(name: str) -> None:
    assert claimed(name) == Label[name.strip().upper()]


def test_no_header_claims_nothing() -> None:
    assert claimed("") is claimed("  ") is None


@pytest.mark.parametrize("name", ["secret", "0", "public, internal", "publik", "é"])
def test_a_wrong_header_names_the_right_ones(name: str) -> None:
    with pytest.raises(ApiError, match="public, internal, confidential, restricted") as raised:
        claimed(name)
    assert (raised.value.status, raised.value.code) == (400, "invalid_data_class")


LABELS = st.sampled_from(Label)


@given(LABELS, LABELS, st.none() | LABELS, st.booleans(), LABELS)
def test_nobody_lowers_it(floor: Label, key: Label, header: Label | None, is_hit: bool, before: Label) -> None:
    """It is at least what each of them gives, and no more than the highest."""
    known = Conversations()
    known.remember("a", known.digests(HELLO), before)
    found = labelled(Claims("a", floor, key, header), *(["card"] if is_hit else []), known=known)
    given_ = [floor, key, header or Label.PUBLIC, before, *([Label.RESTRICTED] if is_hit else [])]
    assert found.label == max(given_)
    assert found.sources
