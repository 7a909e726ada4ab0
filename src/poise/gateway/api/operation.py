"""An operation: what answers at a path, and all that the OpenAPI document says of it, from one definition beside the handler.
The document is put together of what the operations say of themselves.

    def operations(self) -> list[Operation]:
        return [Operation("GET", "/v1/requests/{request_id}", self.get, "How a request stands, or ended", errors=[401, 404])]

A handler returns a msgspec Struct: it is what is sent, and its class, the handler's annotation, is what is described. A handler
that returns a Response of its own (a stream, another status) says in `answers` what is in it."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from poise import __version__
from poise.gateway.api.fields import Schema
from poise.gateway.dialect import Dialect
from poise.gateway.http.addresses import parameters_of
from poise.gateway.http.replies import FRESH, json_reply
from poise.gateway.request.refusals import ErrorBody


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


_REF = "#/components/schemas/"
_ERRORS = {
    400: "The request is malformed, unsupported, or too long for the context.",
    401: "An API key is missing or unknown.",
    403: "This caller may not.",
    404: "There is no such model, template or request.",
    408: "The body did not arrive in time.",
    409: "The request's state does not allow it.",
    413: "The body is too large.",
    415: "The body is packed in a way that is not known here.",
    429: "A queue is full, tokens per minute are used up, or too many requests came with keys that are not known.",
    500: "Something failed in the server; its log has the details.",
    502: "The server that was to answer it did not, or not as it should.",
    503: "The engine cannot take requests now, too many requests are open, or the request waited too long.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}


def document(operations: Sequence[Operation], root_path: str = "") -> Schema:
    """The document of these operations, for clients that find them under `root_path`."""
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.described_path, {})[operation.method.lower()] = _details(operation)
    bodies = [answer.body for operation in operations for answer in operation.described.values() if answer.body]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "poise",
            "description": "A local LLM server that keeps its composure under load, with the OpenAI API.",
            "version": __version__,
        },
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {"schemas": schemas_of([*bodies, ErrorBody])},
    }


def schemas_of(structs: Iterable[type[msgspec.Struct]]) -> dict[str, Schema]:
    """The schemas of Structs and of all that is in them, by name. Enums stand where they are used."""
    _, found = msgspec.json.schema_components(list(structs), ref_template=_REF + "{name}")
    enums = {_REF + name: schema for name, schema in found.items() if "enum" in schema}
    return {name: _plain(_closed(schema), enums) for name, schema in found.items() if _REF + name not in enums}


def _closed(schema: Schema) -> Schema:
    """A Struct is sent with all its fields, but those that are UNSET, which have no default here, and with nothing else."""
    fields = schema["properties"].items()
    required = [name for name, field in fields if name in schema["required"] or "default" in field]
    properties = {name: {key: value for key, value in field.items() if key != "default"} for name, field in fields}
    return schema | {"properties": properties, "required": required, "additionalProperties": False}


def _plain(schema: Any, enums: dict[str, Schema]) -> Any:
    """A schema with references to enums replaced by the enum's type and values."""
    if isinstance(schema, list):
        return [_plain(part, enums) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = enums.get(schema.get("$ref", ""), schema)
    values = schema.get("enum")
    if isinstance(values, list):
        return {"type": "string"} | ({"const": values[0]} if len(values) == 1 else {"enum": values})
    return {key: _plain(part, enums) for key, part in schema.items()}


def _details(operation: Operation) -> Schema:
    answers = {str(status): _answer(described) for status, described in operation.described.items()}
    details: Schema = {
        "summary": operation.summary,
        "operationId": operation.name,
        "responses": answers | _errors(operation.errors),
    }
    if operation.about:
        details["description"] = operation.about
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)", operation.path)
    ]
    if parameters := [*named, *operation.parameters]:
        details["parameters"] = parameters
    if operation.request is not None:
        details["requestBody"] = {"required": True, "content": _json(operation.request)}
    return details


def _answer(described: Described) -> Schema:
    content = _json({"$ref": _REF + described.body.__name__}) if described.body else {}
    content |= {kind: {"schema": schema} for kind, schema in described.content.items()}
    answer: Schema = {"description": described.about, "content": content}
    return answer | ({"headers": dict(described.headers)} if described.headers else {})


def _errors(statuses: Sequence[int]) -> Schema:
    """Who goes on with a key that is not known is answered 429 instead of 401; a body may also be packed in an unknown way."""
    implied = [other for one, other in ((401, 429), (413, 415)) if one in statuses and other not in statuses]
    return {
        str(status): {"description": _ERRORS[status], "content": _json({"$ref": _REF + ErrorBody.__name__})}
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in (*statuses, *implied)
    }


def _json(schema: Schema) -> dict[str, Schema]:
    return {"application/json": {"schema": schema}}
