"""The policy over all its inputs: what may never leave is in no order, and everything is said."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import poise
from poise.config import Settings
from poise.config.hybrid import EgressSettings
from poise.config.serving import TenantSettings
from poise.gateway.models.egress.permit import Purpose
from poise.gateway.models.routing.policy import (
    AUTO,
    LOCAL,
    BackendView,
    Choice,
    Decision,
    LocalView,
    Switches,
    TenantPolicy,
    Wish,
    decide,
    depends_on_text,
    health_permit,
    permit,
)
from poise.gateway.request.labels import Label

T = TypeVar("T")
NAMES = ("north", "south", "house")
NEEDS = ("tools", "structured", "logprobs")
ANYBODY = (AUTO, AUTO, AUTO, LOCAL, *NAMES, "nobody")
EXAMPLES = settings(max_examples=500)


@dataclass(frozen=True)
class Case:
    wish: Wish
    tenant: TenantPolicy
    local: LocalView | None
    backends: tuple[BackendView, ...]
    switches: Switches
    is_open: bool

    def decide(self) -> Decision:
        return decide(self.wish, self.tenant, self.local, self.backends, self.switches, is_open=self.is_open)


def case_of(data: bytes, wanted: Sequence[str]) -> Case:
    """Values by bytes: each picks one of a few, of which those come often that let a request go."""
    left = iter(data)

    def one(*values: T) -> T:
        return values[next(left) % len(values)]

    def seconds() -> float:
        return one(0.0, 1.0, 5.0, 30.0)

    def often() -> bool:
        return one(True, True, True, True, False)

    def backend(name: str) -> BackendView:
        ceiling = one(*Label, Label.RESTRICTED, Label.RESTRICTED)
        able = one(frozenset(NEEDS), frozenset(NEEDS), frozenset(NEEDS[:1]), frozenset[str]())
        figures = (seconds(), one(0, 0, 100, 1000), able, one(0, 1), (one(0, 1, 2), one(0, 1, 2)))
        return BackendView(name, ceiling, one(True, False), often(), *figures, often())

    local = LocalView(often(), seconds(), seconds(), 500, not often(), one((), (), ("tools",)))
    needs = one(frozenset[str](), frozenset[str](), *(frozenset({need}) for need in NEEDS))
    label, is_named = one(*Label, Label.PUBLIC, Label.PUBLIC), one(True, False)
    return Case(
        Wish(
            one(*wanted),
            often(),
            label,
            is_named,
            ("key",),
            one(True, False),
            needs,
            one(10, 10, 500, 5000),
            one(Label.PUBLIC, *Label),
        ),
        TenantPolicy(one("never", "labelled", "allowed", "allowed"), one(frozenset(), frozenset(), frozenset(NAMES[:1]))),
        one(local, local, None),
        tuple(backend(name) for name in NAMES if often()),
        Switches(seconds(), seconds(), often(), often(), often()),
        often(),
    )


def cases(*wanted: str) -> st.SearchStrategy[Case]:
    return st.binary(min_size=65, max_size=65).map(lambda data: case_of(data, wanted or ANYBODY))


def asked(decision: Decision) -> list[str]:
    return [choice.backend for choice in decision.order]


def sent(case: Case) -> list[BackendView]:
    """The remote backends in the order."""
    return [b for name in asked(case.decide()) for b in case.backends if b.name == name]


def may_get_for_free(case: Case, b: BackendView) -> bool:
    """The second formulation: everything that must be true of a backend that gets a request, as a table of conditions."""
    w, t = case.wish, case.tenant
    border = (
        not b.leaves_host or {"never": False, "labelled": w.is_named_label and case.is_open, "allowed": case.is_open}[t.egress]
    )
    listed = len(t.backends) == 0 or b.name in t.backends
    able = w.needs <= b.capabilities and (b.context_tokens == 0 or w.n_tokens <= b.context_tokens)
    return border and listed and able and int(max(w.label, w.could_be)) <= int(b.ceiling) and b.is_healthy


def may_get(case: Case, b: BackendView) -> bool:
    """With money: its own, and no cloud gets what another one before it has no budget for."""
    public = replace(case, wish=replace(case.wish, label=Label.PUBLIC, could_be=Label.PUBLIC))
    broke = [o for o in case.backends if not o.has_budget and may_get_for_free(public, o) and case.wish.wanted == AUTO]
    stands_in = b.leaves_host and any((o.tier, sum(o.price), o.name) < (b.tier, sum(b.price), b.name) for o in broke)
    return may_get_for_free(case, b) and b.has_budget and not stands_in


def has_reason(case: Case, b: BackendView) -> bool:
    """Whether the request may leave the engine here for this backend."""
    w, s, here = case.wish, case.switches, case.local
    if w.wanted != AUTO:
        return w.wanted == b.name
    if here is None:
        return True
    bound = s.heavy_wait_s if w.is_heavy else s.wait_s
    wait = here.wait_s + here.prompt_s if w.is_heavy else here.wait_s
    waits = 0 < bound < wait and b.wait_s < wait
    needs = [not here.is_ready and s.when_down, here.is_too_long and s.when_too_long, bool(here.lacks) and s.when_incapable]
    return any(needs) or waits


@EXAMPLES
@given(cases())
def test_the_oracle_agrees(case: Case) -> None:
    """Who gets a request, and who could: found in two ways."""
    could = {b.name for b in case.backends if may_get(case, b) and has_reason(case, b)}
    found = {b.name for b in sent(case)}
    assert found <= could
    if case.wish.may_fall_back or case.wish.wanted != AUTO:
        assert found == could
    else:
        assert bool(found) == bool(could)


@EXAMPLES
@given(cases())
def test_no_label_passes_a_ceiling(case: Case) -> None:
    """Whatever else is true."""
    assert all(case.wish.label <= b.ceiling for b in sent(case))


@EXAMPLES
@given(cases())
def test_nothing_leaves_that_may_not(case: Case) -> None:
    """Each condition alone keeps everything here."""
    for kept in (
        replace(case, tenant=replace(case.tenant, egress="never")),
        replace(case, is_open=False),
        replace(case, tenant=replace(case.tenant, egress="labelled"), wish=replace(case.wish, is_named_label=False)),
        replace(case, wish=replace(case.wish, wanted=LOCAL)),
    ):
        assert not any(b.leaves_host for b in sent(kept))


@EXAMPLES
@given(cases())
def test_no_budget_and_no_health_is_no_place(case: Case) -> None:
    """Nor is a place that the tenant's list has not."""
    assert not sent(replace(case, backends=tuple(replace(b, has_budget=False) for b in case.backends)))
    assert not sent(replace(case, backends=tuple(replace(b, is_healthy=False) for b in case.backends)))
    assert not sent(replace(case, tenant=replace(case.tenant, backends=frozenset({"elsewhere"}))))


@EXAMPLES
@given(cases())
def test_without_a_fallback_there_is_one_at_most(case: Case) -> None:
    """It is the one that would be first."""
    free = replace(case, wish=replace(case.wish, may_fall_back=True)).decide()
    bound = replace(case, wish=replace(case.wish, may_fall_back=False)).decide()
    assert bound.order == free.order[:1]
    assert bound.refusal == free.refusal


@EXAMPLES
@given(cases(LOCAL, *NAMES))
def test_who_is_named_answers_or_nobody(case: Case) -> None:
    """A name is no wish for something like it."""
    decision = case.decide()
    assert asked(decision) in ([], [case.wish.wanted])
    assert all(choice.reason == "asked" for choice in decision.order)


@EXAMPLES
@given(cases())
def test_every_backend_is_told_of_once(case: Case) -> None:
    """In the order, or with a reason among those that are not."""
    decision = case.decide()
    everybody = [b.name for b in case.backends] + ([LOCAL] if case.local else [])
    assert sorted(asked(decision) + [one.backend for one in decision.rejected]) == sorted(everybody)
    assert all(one.why for one in decision.rejected)
    assert bool(decision.order) != bool(decision.refusal)


@EXAMPLES
@given(cases(), st.randoms())
def test_it_is_a_function(case: Case, random: object) -> None:
    """Of what it is told, and not of the order in which it is told."""
    shuffled = list(case.backends)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = replace(case, backends=tuple(shuffled)).decide()
    assert case.decide() == replace(case).decide()
    assert other.order == case.decide().order
    assert set(other.rejected) == set(case.decide().rejected)


@EXAMPLES
@given(cases(), st.sampled_from(Label))
def test_a_higher_label_opens_no_door(case: Case, label: Label) -> None:
    """Raised, it only takes backends away."""
    free = replace(case, wish=replace(case.wish, may_fall_back=True))
    raised = replace(free, wish=replace(free.wish, label=max(label, free.wish.label)))
    assert {b.name for b in sent(raised)} <= {b.name for b in sent(free)}


@EXAMPLES
@given(cases(AUTO))
def test_the_order(case: Case) -> None:
    """Tier, price, name; this host first while nothing speaks against it, and last, if it can serve, where something does."""
    decision, remote = case.decide(), sent(case)
    assert remote == sorted(remote, key=lambda b: (b.tier, b.price[0] + b.price[1], b.name))
    if case.local is None:
        assert LOCAL not in asked(decision)
    elif not remote:
        assert decision.order == (Choice(LOCAL, "local"),)
    elif case.wish.may_fall_back:
        can_serve = case.local.is_ready and not case.local.is_too_long and not case.local.lacks
        assert (asked(decision)[-1] == LOCAL) == can_serve
    assert all(choice.reason == "fallback" for choice in decision.order[1:])
    assert all(choice.reason not in ("fallback", "asked") for choice in decision.order[:1])


@EXAMPLES
@given(cases())
def test_permits_are_for_what_was_decided(case: Case) -> None:
    """With what the audit log is to have."""
    decision = case.decide()
    for choice in decision.order:
        if choice.backend != LOCAL:
            made = permit(decision, choice, case.wish, "team", "r-1")
            assert (made.backend, made.purpose, made.label, made.reason) == (
                choice.backend,
                Purpose.ANSWER,
                case.wish.label,
                choice.reason,
            )
            assert (made.tenant, made.request_id, made.sources, made.is_used) == ("team", "r-1", ("key",), False)
    for name in {*NAMES, LOCAL} - {b.name for b in sent(case)}:
        with pytest.raises(ValueError, match="no decision"):
            permit(decision, Choice(name, "asked"), case.wish, "team", "r-1")


CLOUD = BackendView("cloud", Label.INTERNAL, leaves_host=True)
MAY = TenantPolicy("allowed")
SOON = Switches(wait_s=5.0, heavy_wait_s=1.0)


@pytest.mark.parametrize(
    ("local", "is_heavy", "order"),
    [
        (LocalView(), False, [(LOCAL, "local")]),
        (LocalView(wait_s=3.0), False, [(LOCAL, "local")]),
        (LocalView(wait_s=3.0), True, [("cloud", "heavy"), (LOCAL, "fallback")]),
        (LocalView(prompt_s=9.0), False, [(LOCAL, "local")]),
        (LocalView(prompt_s=0.6), True, [(LOCAL, "local")]),
        (LocalView(wait_s=0.6, prompt_s=0.6), True, [("cloud", "heavy"), (LOCAL, "fallback")]),
        (LocalView(wait_s=6.0), False, [("cloud", "wait"), (LOCAL, "fallback")]),
        (LocalView(is_too_long=True), False, [("cloud", "too_long")]),
        (LocalView(lacks=("tools",)), False, [("cloud", "incapable")]),
        (LocalView(is_ready=False), False, [("cloud", "engine_down")]),
        (None, False, [("cloud", "only_upstream")]),
    ],
)
def test_reasons_to_leave(local: LocalView | None, is_heavy: bool, order: list[tuple[str, str]]) -> None:
    """Each alone, in the words of the header."""
    decision = decide(Wish(label=Label.PUBLIC, is_heavy=is_heavy), MAY, local, [CLOUD], SOON, is_open=True)
    assert [(choice.backend, choice.reason) for choice in decision.order] == order


@pytest.mark.parametrize(
    ("wish", "backend", "status", "code", "why"),
    [
        (Wish("cloud"), CLOUD, 403, "egress_not_allowed", "up to 'internal', and this one is 'confidential'"),
        (Wish("cloud", label=Label.PUBLIC), replace(CLOUD, is_healthy=False), 503, "backend_unavailable", "does not answer"),
        (Wish("cloud", label=Label.PUBLIC), replace(CLOUD, has_budget=False), 429, "budget_exhausted", "no budget left"),
        (Wish("cloud", label=Label.PUBLIC, needs=frozenset({"tools"})), CLOUD, 400, "unsupported_parameter", "cannot do tools"),
        (
            Wish("cloud", label=Label.PUBLIC, n_tokens=9),
            replace(CLOUD, context_tokens=8),
            400,
            "context_length_exceeded",
            "holds 8 tokens",
        ),
    ],
)
def test_refusals_say_what_stands_in_the_way(wish: Wish, backend: BackendView, status: int, code: str, why: str) -> None:
    """Asked for by name; and the same where there is nothing else to answer."""
    for wanted, local in ((wish, LocalView()), (replace(wish, wanted=AUTO), None)):
        refusal = decide(wanted, MAY, local, [backend], SOON, is_open=True).refusal
        assert refusal is not None
        assert (refusal.status, refusal.code) == (status, code)
        assert why in refusal.message


def test_tier_then_price_then_name() -> None:
    """The price is that of a token in and a token out."""
    four = [replace(CLOUD, name=name, tier=tier, price=price) for name, tier, price in TABLE]
    order = decide(Wish(label=Label.PUBLIC), MAY, None, four, SOON, is_open=True).order
    assert [choice.backend for choice in order] == ["b", "c", "a", "d"]


TABLE = (("a", 0, (1, 9)), ("d", 1, (0, 0)), ("c", 0, (2, 3)), ("b", 0, (3, 2)))


def test_who_waits_as_long_is_no_better() -> None:
    """A request does not leave to wait elsewhere."""
    for wait_s, first in ((5.9, "cloud"), (6.0, LOCAL)):
        backends = [replace(CLOUD, wait_s=wait_s)]
        decision = decide(Wish(label=Label.PUBLIC), MAY, LocalView(wait_s=6.0), backends, SOON, is_open=True)
        assert decision.order[0].backend == first


def test_nothing_to_answer() -> None:
    """No engine and no backend; and names of nobody."""
    for wanted, code in ((AUTO, "backend_unavailable"), (LOCAL, "model_not_found"), ("x", "model_not_found")):
        refusal = decide(Wish(wanted), MAY, None, [], SOON, is_open=True).refusal
        assert refusal is not None
        assert refusal.code == code


def test_the_nearest_backend_is_told_of() -> None:
    """One that would have taken it and cannot now, before one that never may."""
    down = replace(CLOUD, name="down", is_healthy=False)
    refusal = decide(
        Wish(label=Label.INTERNAL), MAY, None, [replace(CLOUD, ceiling=Label.PUBLIC), down], SOON, is_open=True
    ).refusal
    assert refusal is not None
    assert refusal.status == 503


def test_by_settings() -> None:
    """By default nothing leaves for a wait, and no tenant's request leaves at all."""
    assert Switches.of(EgressSettings()) == Switches(0.0, 0.0)
    assert TenantPolicy.of(TenantSettings()) == TenantPolicy("never")
    assert TenantPolicy.of(TenantSettings(egress="labelled", backends=["a"])) == TenantPolicy("labelled", frozenset({"a"}))


def test_a_health_permit_has_nothing_of_a_request() -> None:
    """It is for the backend alone."""
    made = health_permit("cloud")
    assert (made.purpose, made.tenant, made.request_id, made.sources) == (Purpose.HEALTH, "", "", ())


SOURCE = Path(poise.__file__).parent
HOME = "gateway/models/routing/policy.py"


def naming(text: str, *names: str) -> bool:
    """Whether code has one of the names, however it comes by it."""
    for node in ast.walk(ast.parse(text)):
        said = {
            ast.Name: lambda n: [n.id],
            ast.Attribute: lambda n: [n.attr],
            ast.ImportFrom: lambda n: [alias.name for alias in n.names],
            ast.Constant: lambda n: [n.value],
            ast.keyword: lambda n: [n.arg],
        }.get(type(node), lambda n: [])(node)
        if set(names) & set(said):
            return True
    return False


def test_only_the_policy_makes_permits() -> None:
    """Nobody else names the seal, makes or copies a permit, or makes a decision that one could be had for."""
    for path in SOURCE.rglob("*.py"):
        name, text = path.relative_to(SOURCE).as_posix(), path.read_text()
        if name == HOME or not any(word in text for word in ("SEAL", "Permit", "routing")):
            continue
        assert not naming(text, "SEAL") or name == "gateway/models/egress/permit.py", name
        made = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        assert "Permit" not in made, name
        if "routing.policy" in text or "routing import policy" in text or "import Permit" in text:
            assert not made & {"Decision", "Choice", "Rejected", "copy", "deepcopy"}, name


@EXAMPLES
@given(cases(), st.sampled_from(Label), st.booleans(), st.sampled_from([0, 10**6]))
def test_what_nobody_has_to_read_goes_nowhere_that_reading_would_forbid(case: Case, hit: Label, opens: bool, room: int) -> None:
    """Whatever changes until it is answered: health, budgets, waits, the switch."""
    wish = replace(case.wish, could_be=Label.PUBLIC)
    if depends_on_text(wish, case.tenant, case.backends, hit):
        return
    later = tuple(replace(b, is_healthy=opens, has_budget=opens, wait_s=0.0, context_tokens=room) for b in case.backends)
    read, unread = replace(wish, label=max(wish.label, hit)), replace(wish, could_be=hit)
    orders = [asked(replace(case, wish=w, backends=later, is_open=opens).decide()) for w in (read, unread, wish)]
    assert orders[0] == orders[1] == orders[2]


def test_no_permit_is_made_of_another() -> None:
    """What was used could be used again."""
    with pytest.raises(ValueError, match="seal"):
        dataclasses.replace(health_permit("cloud"), is_used=False)  # type: ignore[call-arg]


@pytest.mark.parametrize("code", ["from a import SEAL", "a.SEAL", "getattr(a, 'SEAL')", "SEAL"])
def test_naming_is_seen(code: str) -> None:
    """The test above would find these."""
    assert naming(code, "SEAL")
    assert not naming("x = permit(y)", "SEAL")


@pytest.mark.parametrize("name", [LOCAL, AUTO])
def test_no_backend_is_called_what_the_policy_calls_something_else(name: str) -> None:
    """The settings keep these names."""
    with pytest.raises(ValueError, match='not "local" or "auto"'):
        Settings(backends={name: {"url": "https://api.example.com/v1"}})  # type: ignore[dict-item]
