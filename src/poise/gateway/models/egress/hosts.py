"""The other servers as the door sees them: where each one is, what it is told of who asks, and whether that leaves this host."""

import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from poise.config.hybrid import BackendSettings, leaves_host
from poise.config.kinds import is_loopback

CREDENTIAL = "credential:"
_SECRET_BYTES_MAX = 8192
_ANTHROPIC_VERSION = "2023-06-01"


class EgressSetupError(Exception):
    """A backend that cannot be used as it is configured. The message is one line and says what to do; no secret is in it."""


@dataclass(frozen=True, slots=True)
class Host:
    """One backend's server. `shown`: its scheme, name and port, for errors and the audit log."""

    backend: str
    url: str
    shown: str
    leaves_host: bool
    only_loopback: bool
    """Whatever its name resolves to must be of this host."""
    headers: Mapping[str, str] = field(repr=False)
    """With the key."""
    tls: ssl.SSLContext | None
    connect_s: float
    first_s: float
    gap_s: float
    slots: int


def host_of(name: str, settings: BackendSettings, environ: Mapping[str, str]) -> Host:
    """Reads its key and its certificates. Raises EgressSetupError."""
    where = f"backends.{name}"
    try:
        parts = urlsplit(settings.url)
        server, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise EgressSetupError(f"{where}.url: is no URL: {error}; write it as in https://api.example.com/v1") from None
    loopback = is_loopback(server)
    leaves = leaves_host(settings.url, settings.leaves_host)
    if parts.scheme != "https" and leaves and not loopback:
        says = "http:// would send requests and the key in the clear"
        raise EgressSetupError(f"{where}.url: {says}; use https://, or set {where}.leaves_host = false if the way there is yours")
    key = read_secret(settings.key_file, f"{where}.key_file", environ) if settings.key_file else ""
    shown = f"{parts.scheme}://{f'[{server}]' if ':' in server else server}" + (f":{port}" if port else "")
    headers = {"User-Agent": "poise", "Accept-Encoding": "identity", "Content-Type": "application/json"}
    if settings.format == "anthropic":
        headers |= {"anthropic-version": _ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})
    elif key:
        headers["Authorization"] = f"Bearer {key}"
    return Host(
        backend=name,
        url=settings.url.rstrip("/"),
        shown=shown,
        leaves_host=leaves,
        only_loopback=loopback and not leaves,
        headers=headers,
        tls=_tls(settings.ca_file, f"{where}.ca_file") if parts.scheme == "https" else None,
        connect_s=settings.connect_s,
        first_s=settings.first_s,
        gap_s=settings.gap_s,
        slots=settings.slots,
    )


def read_secret(given: str, where: str, environ: Mapping[str, str]) -> str:
    """A key from a file of this user alone, or from systemd. Raises EgressSetupError, never with what is in the file."""
    is_credential = given.startswith(CREDENTIAL)
    if is_credential:
        name, folder = given.removeprefix(CREDENTIAL), environ.get("CREDENTIALS_DIRECTORY", "")
        if not name or "/" in name or name in (".", ".."):
            raise EgressSetupError(f"{where}: {given!r} names no credential; write it as in credential:NAME")
        if not folder:
            hint = f"start poise by systemd with LoadCredential={name}:FILE, or name a file"
            raise EgressSetupError(f"{where}: there is no $CREDENTIALS_DIRECTORY: {hint}")
        path = Path(folder) / name
    else:
        path = Path(given).expanduser()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            data = os.read(descriptor, _SECRET_BYTES_MAX + 1) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise EgressSetupError(f"{where}: {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise EgressSetupError(f"{where}: {path} is no file")
    if not is_credential and status.st_uid != os.geteuid():
        raise EgressSetupError(f"{where}: {path} belongs to another user; make it yours with `chown`")
    if not is_credential and status.st_mode & 0o077:
        raise EgressSetupError(f"{where}: {path} can be used by other users of this machine; run `chmod 600 {path}`")
    try:
        secret = data.decode("ascii").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or len(data) > _SECRET_BYTES_MAX or not all("!" <= character <= "~" for character in secret):
        raise EgressSetupError(f"{where}: {path} has no key in it: one line of printable ASCII without spaces is needed")
    return secret


def _tls(ca_file: str, where: str) -> ssl.SSLContext:
    """Always verified. With a file of its own, no other authority is trusted."""
    try:
        return ssl.create_default_context(cafile=str(Path(ca_file).expanduser()) if ca_file else None)
    except ssl.SSLError:
        raise EgressSetupError(f"{where}: {ca_file} cannot be used: it has no certificates (PEM)") from None
    except OSError as error:
        raise EgressSetupError(f"{where}: {ca_file} cannot be used: {error.strerror}") from None
