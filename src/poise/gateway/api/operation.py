"""An operation: what answers at a path, and all that the OpenAPI document says of it, from one definition beside the handler.

    def operations(self) -> list[Operation]:
        return [Operation("GET", "/v1/requests/{request_id}", self.get, "How a request stands, or ended", errors=[401, 404])]

A handler returns a msgspec Struct: it is what is sent, and its class, the handler's annotation, is what is described. A handler
that returns a Response of its own (a stream, another status) says in `answers` what is in it."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from poise.gateway.api.fields import Schema
from poise.gateway.dialect import Dialect
from poise.gateway.http.addresses import parameters_of
from poise.gateway.http.replies import FRESH, json_reply


def parameter(name: str, about: str, schema: Schema, where: str = "query") -> Schema:
    """A parameter that may be left out. `where`: "query" or "header"."""
    return {"name": name, "in": where, "description": about, "schema": schema}


@dataclass(frozen=True, slots=True)
class Described:
    """An answer, for the document: a Struct as JSON, content of other media types (with its schema), or both."""

    body: type[msgspec.Struct] | None = None
    about: str = "The answer."
    content: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    path        parts in braces are parameters, `{name:path}` one that takes the rest
    errors      the statuses of its errors; 401 implies 429, for who goes on with a key that is not known, and 413 implies 415
    parameters  besides those of the path, as OpenAPI has them
    request     the schema of the body that it takes
    answers     by status; without it, the Struct that the handler is annotated with
    headers     of an answer that is a Struct
    dialect     that is spoken there, in which errors are written"""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Any]]
    summary: str
    errors: Sequence[int] = ()
    parameters: Sequence[Schema] = ()
    request: Schema | None = None
    answers: Mapping[int, Described] | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: FRESH)
    dialect: Dialect | None = None

    @property
    def described(self) -> Mapping[int, Described]:
        """Its answers that are results, by status."""
        return self.answers or {200: Described(get_type_hints(self.handler)["return"])}

    @property
    def described_path(self) -> str:
        """As the document has it."""
        return re.sub(r":\w+}", "}", self.path)

    @property
    def name(self) -> str:
        """Its operation's id in the document."""
        return re.sub(r"\W", "_", f"{self.handler.__name__}{self.described_path}") + f"_{self.method.lower()}"

    @property
    def about(self) -> str | None:
        return getdoc(self.handler)

    def route(self) -> Route:
        async def answer(request: Request) -> Response:
            request.scope["path_params"] = parameters_of(request.scope)
            made = await self.handler(request)
            return made if isinstance(made, Response) else json_reply(made, 200, self.headers)

        return Route(self.path, answer, methods=[self.method])


@dataclass(frozen=True, slots=True)
class Spoken:
    """A dialect at a path. `name`: of the operation in the OpenAPI document, `answers`: what it says of the results."""

    path: str
    dialect: Dialect
    name: str
    summary: str
    answers: Mapping[int, Described]
