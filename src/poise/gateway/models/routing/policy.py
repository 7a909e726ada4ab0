"""Who may answer a request, and in which order: a pure function of labels, policies, backends, health, estimates and budgets.

    decision = decide(wish, tenant, local, backends, switches, is_open=True)

A request stays here unless there is a reason for it to leave, the reason's switch is on, and everybody lets it go: the ceiling
of the backend, the policy of the tenant, the operator's switch. What turns out later, as that a prompt is too long or that the
engine is gone, is decided again by this function: no backend gets a request because another one failed, unless the order says so.

Nothing else makes permits, and none is made but for a choice of a decision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from poise.config.hybrid import EgressSettings
from poise.config.serving import TenantSettings
from poise.gateway.models.egress.permit import SEAL, Permit, Purpose
from poise.gateway.request.labels import Label

LOCAL = "local"
"""The engine of this host, among names of backends."""
AUTO = "auto"

Reason = Literal["local", "asked", "wait", "heavy", "too_long", "incapable", "engine_down", "only_upstream", "fallback"]


@dataclass(frozen=True, slots=True)
class BackendView:
    """A remote backend at one moment. `context_tokens` 0: no limit is known. `price`: nano-units a token, of input and output."""

    name: str
    ceiling: Label
    leaves_host: bool
    is_healthy: bool = True
    wait_s: float = 0.0
    context_tokens: int = 0
    capabilities: frozenset[str] = frozenset()
    tier: int = 0
    price: tuple[int, int] = (0, 0)
    has_budget: bool = True


@dataclass(frozen=True, slots=True)
class LocalView:
    """The engine of this host. `wait_s`: for a slot, in the request's class; `prompt_s`: its prompt's compute then; `lacks`: what
    it needs and this model cannot do."""

    is_ready: bool = True
    wait_s: float = 0.0
    prompt_s: float = 0.0
    context_tokens: int = 0
    is_too_long: bool = False
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for. `wanted`: AUTO, LOCAL, or the name of a backend.

    `is_named_label`: a header said how sensitive it is. `could_be`: what its text could make it, as long as nobody has read that.
    `is_heavy`: a heavy prompt, or background work. `n_tokens`: about as many has it with its output."""

    wanted: str = AUTO
    may_fall_back: bool = True
    label: Label = Label.CONFIDENTIAL
    is_named_label: bool = False
    sources: tuple[str, ...] = ()
    is_heavy: bool = False
    needs: frozenset[str] = frozenset()
    n_tokens: int = 0
    could_be: Label = Label.PUBLIC


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """`backends` empty: any."""

    egress: Literal["never", "labelled", "allowed"] = "never"
    backends: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: TenantSettings) -> "TenantPolicy":
        return cls(settings.egress, frozenset(settings.backends))


@dataclass(frozen=True, slots=True)
class Switches:
    """For which reasons a request may leave; a wait of 0: for none."""

    wait_s: float = 0.0
    heavy_wait_s: float = 0.0
    when_too_long: bool = True
    when_incapable: bool = True
    when_down: bool = True

    @classmethod
    def of(cls, settings: EgressSettings) -> "Switches":
        s = settings
        return cls(s.wait_s, s.heavy_wait_s, s.when_too_long, s.when_incapable, s.when_down)


@dataclass(frozen=True, slots=True)
class Choice:
    backend: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str
    message: str


class Rejected(NamedTuple):
    """A backend that is not in the order, and why, as a sentence goes on after its name."""

    backend: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`order` is empty where there is a `refusal`. Made by `decide` alone."""

    order: tuple[Choice, ...]
    refusal: Refusal | None = None
    rejected: tuple[Rejected, ...] = ()


class _Barrier(NamedTuple):
    """What keeps a request from a backend; of several backends, the refusal tells of the one that was nearest to take it."""

    rank: int
    why: str


_REFUSALS = (
    (403, "egress_not_allowed"),
    (400, "unsupported_parameter"),
    (400, "context_length_exceeded"),
    (503, "backend_unavailable"),
    (429, "budget_exhausted"),
    (503, "backend_unavailable"),
)
"""By the rank of a barrier."""
_NO_BUDGET = 4


def decide(
    wish: Wish,
    tenant: TenantPolicy,
    local: LocalView | None,
    backends: Iterable[BackendView],
    switches: Switches,
    *,
    is_open: bool,
) -> Decision:
    """`local` None: nothing is computed on this host. `is_open`: whether anything may leave it at all."""
    remotes = sorted(backends, key=_order)
    barriers = {b.name: _barrier(b, wish, tenant, is_open=is_open) for b in remotes}
    rejected = [Rejected(name, barrier.why) for name, barrier in barriers.items() if barrier]
    allowed = [b for b in remotes if barriers[b.name] is None]
    if wish.wanted != AUTO:
        return _named(wish, local, allowed, {name: barrier for name, barrier in barriers.items() if barrier})
    unlabelled = replace(wish, label=Label.PUBLIC, could_be=Label.PUBLIC)  # a higher label is no way around a budget
    alone = ((b, _barrier(b, unlabelled, tenant, is_open=is_open)) for b in remotes)
    spent = next((b for b, barrier in alone if barrier and barrier.rank == _NO_BUDGET), None)
    if spent is not None:  # a budget sends nothing to another cloud
        others = [b for b in allowed if b.leaves_host and _order(b) > _order(spent)]
        rejected += [Rejected(b.name, f"would stand in for {spent.name}, whose budget is used up") for b in others]
        allowed = [b for b in allowed if b not in others]
    reason = _reason_to_leave(wish, local, switches)
    if reason is None:
        stays = "is not asked: there is no reason to leave this host that a setting of [egress] names"
        return Decision((Choice(LOCAL, "local"),), None, (*rejected, *(Rejected(b.name, stays) for b in allowed)))
    if local is not None and reason in ("wait", "heavy"):
        wait_s = _wait_s(wish, local)
        busy = [b for b in allowed if b.wait_s >= wait_s]
        rejected += [Rejected(b.name, f"has a wait of {b.wait_s:.1f} s, here it is {wait_s:.1f} s") for b in busy]
        allowed = [b for b in allowed if b not in busy]
    names = [b.name for b in allowed]
    if local is not None:
        flaw = _flaw(local)
        if flaw and names:
            rejected.append(Rejected(LOCAL, flaw))
        else:
            names.append(LOCAL)
    if not names:
        return Decision((), _refusal([b for b in barriers.values() if b]), tuple(rejected))
    first: Reason = "local" if names[0] == LOCAL else reason
    return _cut(wish, (Choice(names[0], first), *(Choice(name, "fallback") for name in names[1:])), rejected)


def depends_on_text(wish: Wish, tenant: TenantPolicy, backends: Iterable[BackendView], hit: Label) -> bool:
    """Whether it can matter, now or before it is answered, that a rule gives the request the label `hit`: else nobody reads it.

    Health, waits, budgets and the operator's switch are left out, because they change while it waits."""
    ideal = (replace(b, is_healthy=True, has_budget=True, context_tokens=0) for b in backends if b.ceiling < hit)
    return any(wish.wanted in (AUTO, b.name) and _barrier(b, wish, tenant, is_open=True) is None for b in ideal)


def permit(decision: Decision, choice: Choice, wish: Wish, tenant: str, request_id: str) -> Permit:
    """To send one request once to the backend of a choice. Raises ValueError for what was not decided."""
    if choice not in decision.order or choice.backend == LOCAL:
        raise ValueError(f"there is no decision to send anything to {choice.backend!r}")
    return Permit(choice.backend, Purpose.ANSWER, wish.label, wish.sources, choice.reason, tenant, request_id, SEAL)


def health_permit(backend: str) -> Permit:
    """To ask a backend how it is. Nothing of any request is sent."""
    return Permit(backend, Purpose.HEALTH, Label.PUBLIC, (), "health", "", "", SEAL)


def _order(b: BackendView) -> tuple[int, int, str]:
    return b.tier, sum(b.price), b.name


def _named(wish: Wish, local: LocalView | None, allowed: Sequence[BackendView], barriers: dict[str, _Barrier]) -> Decision:
    """The request has said who is to answer it: nobody else does."""
    others = [Rejected(name, barrier.why) for name, barrier in barriers.items() if name != wish.wanted]
    others += [Rejected(b.name, f"is not {wish.wanted}, which was asked for") for b in allowed if b.name != wish.wanted]
    if wish.wanted == LOCAL:
        if local is None:
            return Decision((), Refusal(404, "model_not_found", "There is no model on this host."), tuple(others))
        return Decision((Choice(LOCAL, "asked"),), None, tuple(others))
    if local is not None:
        others.append(Rejected(LOCAL, f"is not {wish.wanted}, which was asked for"))
    if any(b.name == wish.wanted for b in allowed):
        return Decision((Choice(wish.wanted, "asked"),), None, tuple(others))
    barrier = barriers.get(wish.wanted)
    if barrier is None:
        return Decision((), Refusal(404, "model_not_found", f"There is no backend {wish.wanted!r}."), tuple(others))
    status, code = _REFUSALS[barrier.rank]
    message = f"The backend {wish.wanted!r} was asked for and {barrier.why}. No other one is asked instead."
    return Decision((), Refusal(status, code, message), (*others, Rejected(wish.wanted, barrier.why)))


def _cut(wish: Wish, order: tuple[Choice, ...], rejected: Sequence[Rejected]) -> Decision:
    if wish.may_fall_back:
        return Decision(order, None, tuple(rejected))
    left_out = (Rejected(choice.backend, "would be a fallback, and the request wants none") for choice in order[1:])
    return Decision(order[:1], None, (*rejected, *left_out))


def _barrier(b: BackendView, wish: Wish, tenant: TenantPolicy, *, is_open: bool) -> _Barrier | None:
    """Why a backend may or can not take the request, if so. What forbids comes first."""
    if wish.label > b.ceiling:
        by = f" (by {', '.join(wish.sources)})" if wish.sources else ""
        return _Barrier(0, f"takes requests up to '{b.ceiling.shown}', and this one is '{wish.label.shown}'{by}")
    if tenant.backends and b.name not in tenant.backends:
        return _Barrier(0, "is not among the backends of this tenant")
    if b.leaves_host and tenant.egress == "never":
        return _Barrier(0, 'is not on this host, which requests of this tenant never leave (egress = "never")')
    if b.leaves_host and tenant.egress == "labelled" and not wish.is_named_label:
        return _Barrier(0, "is not on this host, which only requests of this tenant that name their label may leave")
    if b.leaves_host and not is_open:
        return _Barrier(0, "is not on this host, which nothing may leave now")
    if missing := sorted(wish.needs - b.capabilities):
        return _Barrier(1, f"cannot do {', '.join(missing)}")
    if b.context_tokens and wish.n_tokens > b.context_tokens:
        return _Barrier(2, f"holds {b.context_tokens} tokens, and this request has about {wish.n_tokens}")
    if not b.is_healthy:
        return _Barrier(3, "does not answer at the moment")
    if not b.has_budget:
        return _Barrier(_NO_BUDGET, "has no budget left")
    unread = f"takes requests up to '{b.ceiling.shown}', and nobody has read the text of this one"
    return _Barrier(0, unread) if wish.could_be > b.ceiling else None


def _reason_to_leave(wish: Wish, local: LocalView | None, switches: Switches) -> Reason | None:
    if local is None:
        return "only_upstream"
    if not local.is_ready and switches.when_down:
        return "engine_down"
    if local.is_too_long and switches.when_too_long:
        return "too_long"
    if local.lacks and switches.when_incapable:
        return "incapable"
    bound_s = switches.heavy_wait_s if wish.is_heavy else switches.wait_s
    if bound_s > 0.0 and _wait_s(wish, local) > bound_s:
        return "heavy" if wish.is_heavy else "wait"
    return None


def _wait_s(wish: Wish, local: LocalView) -> float:
    """What is held against a bound. A heavy prompt has all this host's compute as soon as it has a slot, and everybody else then
    waits for it: its own compute counts as a wait."""
    return local.wait_s + (local.prompt_s if wish.is_heavy else 0.0)


def _flaw(local: LocalView) -> str:
    """Why the engine of this host cannot serve the request at all; empty: it can."""
    if not local.is_ready:
        return "has no engine at the moment"
    if local.is_too_long:
        return "has no slot for so long a prompt"
    return f"cannot do {', '.join(local.lacks)}" if local.lacks else ""


def _refusal(barriers: Sequence[_Barrier]) -> Refusal:
    """No backend may or can take it, and nothing is computed here."""
    if not barriers:
        return Refusal(503, "backend_unavailable", "There is no backend that could answer.")
    nearest = max(barriers, key=lambda barrier: barrier.rank)
    status, code = _REFUSALS[nearest.rank]
    return Refusal(status, code, f"No backend can answer: the nearest one {nearest.why}.")
