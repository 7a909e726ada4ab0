"""Whether the server may listen where the settings say: beyond this machine only with keys and TLS, unless they allow it."""

import ipaddress
import ssl
from functools import lru_cache

from poise.config import ServerSettings, Settings
from poise.config.kinds import address_of, is_loopback
from poise.config.serving import AuthSettings
from poise.gateway.tenancy.keys import KeyRing

IPV6_SITE_BITS = 64
"""What one site is given of IPv6, whose every address it can use."""


class Exposed(Exception):
    """The server must not start like this; the message is one line and says what to set."""


def check(settings: Settings, address: str, *, n_keys: int) -> None:
    """Raises Exposed. `address` is the one to listen on, `n_keys` how many keys of tenants there are."""
    server = settings.server
    required = key_required(settings.auth, n_keys)
    if required and not n_keys:
        raise Exposed("auth.required = true, but there is no key that would open it: run `poise keys add NAME`")
    if is_loopback(address):
        return
    if not required and not server.allow_open:
        remedy = "set auth.required = true" if n_keys else "make keys with `poise keys add NAME`"
        remedy += ", or, if that is meant, server.allow_open = true"
        raise Exposed(f"whoever reaches {address} could use the server: {remedy}")
    if not server.tls_cert and not server.allow_plain:
        raise Exposed(
            f"keys and answers would cross the network to {address} in clear: set server.tls_cert and server.tls_key, or, "
            "if something in front speaks TLS, server.allow_plain = true"
        )


def count_keys(auth: AuthSettings, ring: KeyRing) -> int:
    """How many valid keys of tenants there are, in the settings and in the keys file."""
    return len(auth.keys) + sum(not key.admin for key in ring.valid())


def key_required(auth: AuthSettings, n_keys: int) -> bool:
    """Whether requests without a key are refused, with so many keys of tenants."""
    return n_keys > 0 if auth.required == "auto" else auth.required


def tls_context(server: ServerSettings) -> ssl.SSLContext | None:
    """What HTTPS is spoken with, where it is. Raises Exposed when the files do not serve."""
    if not server.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password of its own, OpenSSL would ask at the terminal.
        context.load_cert_chain(server.tls_cert, server.tls_key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not usable"
        reason += "; they must be a PEM certificate chain and its key without a passphrase"
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason
        files = f"server.tls_cert = {server.tls_cert}, server.tls_key = {server.tls_key}"
        raise Exposed(f"{files}: {reason}") from error
    return context


@lru_cache(maxsize=1024)
def site_of(address: str) -> str:
    """What an address counts as: of IPv6 its network, because whoever has one address has that many."""
    parsed = address_of(address)
    if parsed is None:
        return address[:64]
    if parsed.version == 4 or parsed.is_loopback:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, IPV6_SITE_BITS), strict=False))
