"""What the edge reads of each request, as values: whose credentials it shows, and under which id it is known."""

from starlette.requests import HTTPConnection
from starlette.types import Scope

from poise.gateway.http.connections.peers import is_direct
from poise.gateway.tenancy.caller import Credentials

REQUEST_ID = b"x-request-id"
"""The header that a request has when it comes to the application: RequestMiddleware sees to that."""


def credentials_of(connection: HTTPConnection) -> Credentials:
    """What a request shows of who sends it."""
    return Credentials(
        connection.headers.get("authorization", "").strip(),
        connection.headers.get("x-api-key", "").strip(),
        is_direct(connection.scope),
        request_id_of(connection.scope),
    )


def request_id_of(scope: Scope) -> str:
    """The id of the request that a scope belongs to."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == REQUEST_ID), "-")
