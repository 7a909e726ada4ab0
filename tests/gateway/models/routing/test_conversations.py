"""Labels of conversations: who goes on with one has its label, within bounds, and what is forgotten raises a floor."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.routing.conversations import Conversations
from poise.gateway.request.labels import Label
from poise.wire.text import Call, Message

SYSTEM, FIRST = Message("system", "Be brief."), Message("user", "Our plan is ...")
ANSWER, NEXT = (
    Message("assistant", "A good plan.", reasoning="hm", calls=(Call("c-1", "look", "{}"),)),
    Message("user", "And now?"),
)


def test_who_goes_on_has_the_label() -> None:
    """Also with an answer in between, and with what clients change in it; others do not, nor do other tenants."""
    known = Conversations()
    known.remember("a", known.digests([SYSTEM, FIRST]), Label.CONFIDENTIAL)
    plain = Message("assistant", " A good plan.\n", calls=(Call("c-2", "look", "{}"),))
    for after in ([], [ANSWER], [ANSWER, NEXT], [plain, NEXT]):
        assert known.label("a", known.digests([SYSTEM, FIRST, *after])) == Label.CONFIDENTIAL
    for other in ([], [SYSTEM], [SYSTEM, NEXT], [FIRST], [FIRST, SYSTEM]):
        assert known.label("a", known.digests(other)) == Label.PUBLIC
    assert known.label("b", known.digests([SYSTEM, FIRST])) == Label.PUBLIC
    assert Conversations().digests([FIRST]) != known.digests([FIRST])


def test_labels_only_rise() -> None:
    """A lower one is not written over a higher one, and one entry does for all that follows."""
    known, later = Conversations(), [SYSTEM, FIRST, ANSWER, NEXT]
    known.remember("a", known.digests([SYSTEM, FIRST]), Label.RESTRICTED)
    known.remember("a", known.digests([SYSTEM, FIRST]), Label.INTERNAL)
    known.remember("a", known.digests(later), Label.RESTRICTED)
    assert known.n_kept == 2
    assert known.label("a", known.digests([SYSTEM, FIRST])) == Label.RESTRICTED
    known.remember("a", known.digests([SYSTEM]), Label.INTERNAL)
    assert known.label("a", known.digests([SYSTEM])) == Label.INTERNAL
    assert known.label("a", known.digests(later)) == Label.RESTRICTED


def test_too_many_of_a_tenant_raise_its_floor() -> None:
    """To the lowest label that there is; the higher ones are kept."""
    known = Conversations(tenant_max=2)
    said = [known.digests([Message("user", str(i))]) for i in range(4)]
    for digests, label in zip(said, (Label.RESTRICTED, Label.INTERNAL, Label.INTERNAL), strict=False):
        known.remember("a", digests, label)
    assert known.floor("a") == Label.INTERNAL
    assert [known.label("a", digests) for digests in said] == [Label.RESTRICTED, *[Label.INTERNAL] * 3]
    assert known.floor("b") == Label.PUBLIC
    assert known.n_kept == 2


async def test_erased_with_its_tenant() -> None:
    """Nothing of it is left, and nothing of others goes."""
    known = Conversations(tenant_max=1)
    for tenant in ("a", "b"):
        for i in range(2):
            known.remember(tenant, known.digests([Message("user", f"{i}")]), Label(i + 1))
    assert await known.erase("a") == {"conversations": 1}
    assert known.label("a", known.digests([Message("user", "1")])) == Label.PUBLIC
    assert known.label("b", known.digests([Message("user", "1")])) == Label.RESTRICTED or known.floor("b") == Label.INTERNAL
    assert await known.erase("a") == {"conversations": 0}
    assert known.n_kept == 2


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30), st.sampled_from(Label)), max_size=120))
def test_the_books(steps: list[tuple[str, int, Label]]) -> None:
    """Within the bounds, counted exactly; and nobody's label is ever lower than it was."""
    known, highest = Conversations(tenant_max=6, all_max=12), defaultdict[tuple[str, int], Label](lambda: Label.PUBLIC)
    for tenant, i, label in steps:
        digests = known.digests([Message("user", str(i))])
        known.remember(tenant, digests, label)
        highest[tenant, i] = max(highest[tenant, i], label)
        books = known._books.values()
        assert known.n_kept == sum(1 + len(book.labels) for book in books) <= 12
        assert all(len(book.labels) <= 6 and (book.labels or book.floor) for book in books)
        for (whose, j), before in highest.items():
            assert known.label(whose, known.digests([Message("user", str(j))])) >= before


@pytest.mark.parametrize("n_tenants", [3, 40])
def test_very_many_tenants(n_tenants: int) -> None:
    """When there are more than can be known of, all have the floor that any would have had."""
    known = Conversations(tenant_max=4, all_max=10)
    for i in range(n_tenants):
        known.remember(f"t{i}", known.digests([FIRST]), Label.INTERNAL)
    assert known.n_kept <= 10
    assert known.label("new", []) == (Label.INTERNAL if n_tenants == 40 else Label.PUBLIC)
    known.remember("t0", known.digests([NEXT]), Label.RESTRICTED)
    assert known.label("t0", known.digests([NEXT])) == Label.RESTRICTED
