"""Numbers and groups of requests in words, for explanations."""

from __future__ import annotations

from collections.abc import Sequence

from poise.gateway.neighbours import Beside, Company, Group

NAMED_MAX = 5
LIMITS = {
    "host_memory": "host memory",
    "compute": "compute",
    "kv_cells": "slots and KV cells",
    "tenant_limits": "tenants' own limits",
    "readers": "readers that are behind",
    "none": "nothing",
    "idle": "nothing to do",
}
STATES = {
    "queued": "it was in the queue",
    "paused": "an operator had paused it",
    "stalled": "it was held because its reader was behind",
    "swapped": "its KV cells were in host memory and it had no slot",
    "dropped": "its KV cells had been given up and it had no slot",
    "lost": "its engine had died and no other one had it yet",
}
ENDS = {
    "stop": "the model ended its answer, or a stop string was found",
    "length": "its allowance of output was used up",
    "cancelled": "it was cancelled",
    "reader_timeout": "its client took nothing of the stream for too long, and the connection was closed",
    "expired": "it waited longer for a slot than its queue_timeout",
    "engine_lost": "the engine died under it more often than a request may lose one",
    "quarantined": "engines died computing it, and it is not tried again",
    "server_stopping": "the server was stopped, and its time for draining was over",
    "failed": "the engine could not compute it; the server's log says why",
    "internal_error": "something failed in the server; its log says what",
}


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 0.001:
        return "under 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def share(part: float) -> str:
    return f"{part:.0%}".replace("%", " %") if part >= 0.01 or part == 0 else "under 1 %"


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def work(company: Company) -> str:
    """What the others got, which is something."""
    about = "" if company.is_exact else "about "
    parts = [about + count(company.n_prompt, "prompt token")] if company.n_prompt else []
    parts += [count(company.n_output, "output token")] if company.n_output else []
    return joined(parts)


def held_by(company: Company) -> str:
    """Who held slots when the time began."""
    return joined(
        [
            f"{group.n_slots} by {_requests(group, group.n_slots)}{_names(group.holders)}"
            for group in company.groups
            if group.n_slots
        ]
    )


def holders(company: Company) -> str:
    """Who held slots at any moment of that time."""
    return joined([_some(group, group.n_held) for group in company.groups if group.n_held])


def groups(company: Company) -> str:
    """Who was there in that time."""
    return joined([f"{_some(group, group.n_requests)}{_names(group.ids)}" for group in company.groups])


def one(other: Beside) -> str:
    """One of the others."""
    name = f" ({other.response_id})" if other.response_id else ""
    return f"{_requests(other, 1)}{name}"


def _some(group: Group, n: int) -> str:
    return (f"{n} " if n > 1 else "") + _requests(group, n)


def _requests(of: Group | Beside, n: int) -> str:
    if n == 1:
        article = "an" if of.request_class == "interactive" else "a"
        return f"{article} {of.request_class} request of {'the same' if of.own else 'another'} tenant"
    return f"{of.request_class} requests of {'the same tenant' if of.own else 'other tenants'}"


def _names(ids: Sequence[str]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - NAMED_MAX} more" if len(ids) > NAMED_MAX else ""
    return f" ({', '.join(ids[:NAMED_MAX])}{more})"
