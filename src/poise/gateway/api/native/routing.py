"""What operators ask and say about requests that other servers answer: may anything leave, how are the servers, and what would
happen to a request, without sending it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request

from poise.gateway.api.operation import Operation, Spoken
from poise.gateway.http.body import read_json
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.models.names import ModelNames
from poise.gateway.models.remote.model import RemoteModel
from poise.gateway.models.routed import Explained, Routing
from poise.gateway.models.routing.labels import claimed
from poise.gateway.records.record import Origin
from poise.gateway.request.generate import Generate
from poise.gateway.request.labels import Label
from poise.gateway.request.refusals import ApiError, invalid_value, missing_parameter, shown
from poise.gateway.tenancy.auditing import Audit
from poise.gateway.tenancy.tenants import LOCAL as LOCAL_TENANT
from poise.gateway.tenancy.tenants import Tenants
from poise.scheduler.request import RequestClass

BY_OPERATOR = "an operator has closed it"
_ASKED = {
    "type": "object",
    "properties": {
        "tenant": {"type": "string", "description": "Whose request it would be; local where it is left out."},
        "path": {"type": "string", "description": "Where it would be sent; /v1/chat/completions where it is left out."},
        "data_class": {"type": "string", "enum": [label.shown for label in Label]},
        "body": {"type": "object", "description": "The request itself."},
    },
    "required": ["body"],
}


class BackendRow(msgspec.Struct, frozen=True, kw_only=True):
    """Another server, as it stands. `wait_ms`: for a place there, of an interactive request."""

    name: str
    leaves_host: bool
    ceiling: str
    is_up: bool
    slots: int
    busy: int
    queued: int
    wait_ms: int
    models: list[str]


class EgressBody(msgspec.Struct, frozen=True, kw_only=True):
    """`why_closed` empty: requests may leave this host, where label and tenant allow it."""

    is_open: bool
    why_closed: str
    backends: list[BackendRow]


@dataclass(eq=False, repr=False)
class RoutingAnswers:
    """Answers /admin/egress, /admin/backends and /admin/route. Every answer is preceded by the check of who asks."""

    _routing: Routing
    _names: ModelNames
    _spoken: Sequence[Spoken]
    _tenants: Tenants
    _audit: Audit

    def operations(self) -> list[Operation]:
        reset = "Ask a server again that had refused its key, or was taken to be down"
        what = "What would happen to a request, and why; nothing is sent"
        return [
            Operation("GET", "/admin/egress", self.show, "May requests leave this host; how are the other servers", [401, 403]),
            Operation("POST", "/admin/egress/close", self.close, "Let nothing leave this host", [401, 403]),
            Operation("POST", "/admin/egress/open", self.open, "Let requests leave again, as the settings say", [401, 403]),
            Operation("POST", "/admin/backends/{name}/reset", self.reset, reset, [401, 403, 404]),
            Operation("POST", "/admin/route", self.route, what, [400, 401, 403, 404, 408, 413], request=_ASKED),
        ]

    async def show(self, request: Request) -> EgressBody:
        """The other servers, and whether anything may go there."""
        self._tenants.check_admin(credentials_of(request))
        return self._body()

    async def close(self, request: Request) -> EgressBody:
        """From now on nothing leaves; what was sent already is answered to its end."""
        self._audit.operator(self._tenants.check_admin(credentials_of(request)), "egress_close")
        self._routing.egress.shut(BY_OPERATOR)
        return self._body()

    async def open(self, request: Request) -> EgressBody:
        """Take back what `close` said. The settings and POISE_NO_CLOUD stand."""
        self._audit.operator(self._tenants.check_admin(credentials_of(request)), "egress_open")
        self._routing.egress.open()
        return self._body()

    async def reset(self, request: Request) -> EgressBody:
        """What has failed there before counts no more."""
        caller = self._tenants.check_admin(credentials_of(request))
        name = request.path_params["name"]
        if (remote := self._routing.remotes.get(name)) is None:
            known = ", ".join(self._routing.remotes)
            raise ApiError(404, "backend_not_found", f"There is no backend {shown(name)}; there are: {known}.", param="name")
        self._audit.operator(caller, "backend_reset", backend=name)
        remote.reset()
        return self._body()

    async def route(self, request: Request) -> Explained:
        """The label of the request and what gave it, who would be asked in which order, and who not, with the reasons."""
        self._tenants.check_admin(credentials_of(request))
        asked = await read_json(
            request, self._routing.settings.server.max_body_bytes, self._routing.settings.server.body_timeout_s
        )
        generate, origin = self._read(asked)
        return await self._routing.explain(generate, origin, self._names.find(generate.model))

    def _read(self, asked: Mapping[str, Any]) -> tuple[Generate, Origin]:
        if not isinstance(body := asked.get("body"), dict):
            raise missing_parameter("body", "the request that it is about, as an object")
        path, tenant, claim = (
            asked.get("path", "/v1/chat/completions"),
            asked.get("tenant", LOCAL_TENANT),
            asked.get("data_class"),
        )
        dialects = {spoken.path: spoken.dialect for spoken in self._spoken}
        if path not in dialects:
            raise invalid_value("path", f"be one of {', '.join(dialects)}", path)
        if not isinstance(tenant, str):
            raise invalid_value("tenant", "be the name of a tenant", tenant)
        generate = dialects[path].read(body)
        label = claimed(str(claim or ""))
        about = (dialects[path].prompt_param, 0.0, 0, "", tenant, True, dialects[path].name)
        origin = Origin("route", tenant, generate.request_class, *about, Label.PUBLIC, label, generate.fallback)
        return generate, origin

    def _body(self) -> EgressBody:
        egress = self._routing.egress
        rows = [_row(remote) for remote in self._routing.remotes.values()]
        return EgressBody(is_open=not egress.why_closed, why_closed=egress.why_closed, backends=rows)


def _row(remote: RemoteModel) -> BackendRow:
    view, queue = remote.view(RequestClass.INTERACTIVE), remote.turns.queue
    return BackendRow(
        name=remote.name,
        leaves_host=view.leaves_host,
        ceiling=view.ceiling.shown,
        is_up=view.is_healthy,
        slots=queue.n_slots,
        busy=queue.n_busy,
        queued=sum(queue.n_waiting.values()),
        wait_ms=int(view.wait_s * 1000),
        models=list(remote.names),
    )
