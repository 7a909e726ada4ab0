"""Holds every answer that a test gets against what the OpenAPI document says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

import jsonschema_rs

from poise.gateway.api.operation import Operation, document, schemas_of
from poise.gateway.request.refusals import ErrorBody

SERVER_ERRORS = {403, 404, 405, 421, 429, 500, 503}
"""Errors that need no operation: of the guard, the router, the bound on open requests, or a bug."""


def check(operations: Sequence[Operation], method: str, path: str, status: int, content_type: str, body: bytes) -> None:
    """Fail where an answer is not one of those that are described, or has another form."""
    operation = operation_of(operations, method, path)
    if operation is None:
        return
    answers = described(operation)
    if str(status) not in answers:
        assert status in SERVER_ERRORS, f"{method} {path} is not described to answer with {status}"
        _error().validate(json.loads(body))
        return
    kind = content_type.partition(";")[0]
    assert kind in answers[str(status)], f"{method} {path}: {status} is not described to be {kind}"
    if kind == "application/json":
        answers[str(status)][kind].validate(json.loads(body))


def operation_of(operations: Sequence[Operation], method: str, path: str) -> Operation | None:
    """What answers there; None for what is no operation: pages, the document itself, paths that are not there."""
    for operation in operations:
        if operation.method == method and _pattern(operation.path).fullmatch(path):
            return operation
    return None


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"{\w+}", "[^/]+", re.sub(r"{\w+:path}", ".+", path)))


@cache
def _error() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        {"$ref": "#/components/schemas/ErrorBody", "components": {"schemas": schemas_of([ErrorBody])}}
    )


_known: dict[str, dict[str, dict[str, jsonschema_rs.Draft202012Validator]]] = {}


def described(operation: Operation) -> dict[str, dict[str, jsonschema_rs.Draft202012Validator]]:
    """Validators of its answers, by status and content type. Nothing of them depends on a server's settings."""
    if operation.name not in _known:
        whole = document([operation])
        ((details,),) = [path.values() for path in whole["paths"].values()]
        _known[operation.name] = {
            status: {
                kind: jsonschema_rs.Draft202012Validator(content["schema"] | {"components": whole["components"]})
                for kind, content in answer["content"].items()
            }
            for status, answer in details["responses"].items()
        }
    return _known[operation.name]
