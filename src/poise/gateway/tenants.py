"""Who is asking: API keys to tenant names.

Three kinds of tenant: those the configuration declares; `key-<hash>`, one for each key, when it declares none; and `local`,
everyone without a key. The configuration cannot declare a name of the other two kinds, so none can be forged. Keys are
compared as hashes in constant time, and are neither stored nor logged.
"""

from __future__ import annotations

import hmac
import ipaddress
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from poise.config import AuthSettings
from poise.gateway.errors import ApiError

LOCAL = "local"


class Tenants:
    def __init__(self, auth: AuthSettings) -> None:
        self._declared = [(_digest(key), name) for name, key in auth.keys.items()]
        self._required = auth.required
        self._admin = _digest(auth.admin_key) if auth.admin_key else None

    def identify(self, connection: HTTPConnection) -> str:
        """The tenant's name. Raises ApiError (401)."""
        key = _presented_key(connection)
        if key is None:
            if self._required:
                raise _unauthorized("missing_api_key", "An API key is needed: send 'Authorization: Bearer KEY'.")
            return LOCAL
        digest = _digest(key)
        tenant = None
        for declared, name in self._declared:  # all of them: the time must not tell which one matched
            if hmac.compare_digest(declared, digest):
                tenant = name
        if tenant is not None:
            return tenant
        if self._declared or self._required:
            raise _unauthorized(
                "invalid_api_key", "The API key is not known here. Check it, or ask the operator for one."
            )
        return f"key-{digest.hex()[:12]}"

    def is_admin(self, connection: HTTPConnection) -> bool:
        """Whether the caller may see the server's inside."""
        try:
            self.check_admin(connection)
        except ApiError:
            return False
        return True

    def holds_admin_key(self, connection: HTTPConnection) -> bool:
        """Whether the caller presents the configured admin key. To be on this machine is not enough: others may be, too."""
        return self._admin is not None and self.is_admin(connection)

    def check_admin(self, connection: HTTPConnection) -> None:
        """Raises ApiError unless the caller may see the server's inside."""
        if self._admin is not None:
            key = _presented_key(connection)
            if key is None or not hmac.compare_digest(self._admin, _digest(key)):
                raise _unauthorized("invalid_admin_key", "The admin key is needed: send 'Authorization: Bearer KEY'.")
        elif not _is_loopback(connection):
            message = "Without auth.admin_key, /admin answers callers on this machine only. Set a key to use it from elsewhere."
            raise ApiError(403, "admin_is_local", message)


def _presented_key(connection: HTTPConnection) -> str | None:
    authorization = connection.headers.get("authorization", "").strip()
    if not authorization:
        return connection.headers.get("x-api-key", "").strip() or None
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("invalid_authorization", "The Authorization header must have the form 'Bearer KEY'.")
    return key.strip() or None


def _is_loopback(connection: HTTPConnection) -> bool:
    """The caller is on this machine, and addressed it as such.

    A web page can make the browser of a local user call us under a name of its own; the Host header gives it away.
    """
    try:
        host = urlsplit("//" + connection.headers.get("host", "")).hostname or ""
    except ValueError:
        return False
    return connection.client is not None and _is_local(connection.client.host) and _is_local(host)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})
