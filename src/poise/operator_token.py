"""The token of local operators: how a command proves to a server that its user is the one who started it.

Each server writes a secret of its own into a file that only its user can read, `operator-ADDRESS-PORT.token`, and takes it away
at its end. `poise top` and other commands of the same user find the file by the server's URL. To come from this machine proves
nothing: so do other users of it, and everybody behind a proxy on it.

The file lies in `$XDG_RUNTIME_DIR/poise`, or in `run` in the state directory where there is no such directory. Its server holds
a lock on it, so that a file without one is known to be left over; those are removed by the next server."""

import contextlib
import fcntl
import ipaddress
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

PREFIX = "po-"
_WILDCARDS = {4: ("0.0.0.0", "::"), 6: ("::",)}  # noqa: S104 - names of files, nothing listens here
_BYTES_MAX = 256
_NEW_S = 60.0
"""A file that is younger is being made, perhaps: it may have no lock yet."""


class TokenFile:
    """A server's token and its file. `close` takes the file away."""

    def __init__(self, token: str, path: Path, descriptor: int) -> None:
        self.token = token
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Unless another server has put its own in the place."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor)):
                self.path.unlink()
        os.close(self._descriptor)


def write_token(address: str, port: int) -> TokenFile:
    """Draw a token for the server that listens there, and write its file. Raises OSError when no directory takes it."""
    failure: OSError | None = None
    for folder in _folders():
        try:
            _make_private(folder)
            return _write(folder, f"operator-{address}-{port}.token")
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


def find_token(url: str) -> str:
    """The token of the server at `url`, if it runs on this machine as this user; else "".

    Only names and addresses of this machine are looked up, and the very address that a server listens on: the token
    goes nowhere else."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = _addresses(parts.hostname or "")
    except ValueError:
        return ""
    for address in addresses:
        for folder in _folders():
            if token := _read(folder / f"operator-{address}-{port}.token"):
                return token
    return ""


def _folders() -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isabs(runtime):
        yield Path(runtime) / "poise"
    yield Path(platformdirs.user_state_dir("poise", appauthor=False)) / "run"


def _addresses(host: str) -> list[str]:
    """What a server that answers to `host` may listen on by its settings."""
    if host.lower().rstrip(".") == "localhost":
        return ["127.0.0.1", "::1", *_WILDCARDS[4]]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    return [str(address), *(_WILDCARDS[address.version] if address.is_loopback else ())]


def _make_private(folder: Path) -> None:
    """Raises OSError where it is not this user's own."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(1, "is not a directory of this user", str(folder))
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def _write(folder: Path, name: str) -> TokenFile:
    _remove_left_over(folder)
    token = PREFIX + secrets.token_urlsafe(32)
    draft = folder / f"{name}.{secrets.token_hex(8)}.new"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, token.encode())
        os.replace(draft, folder / name)
    except OSError:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return TokenFile(token, folder / name, descriptor)


def _remove_left_over(folder: Path) -> None:
    """Files of servers that were killed, also those that never got their name."""
    for path in folder.glob("operator-*"):
        with contextlib.suppress(OSError), _opened(path) as (descriptor, status):
            if time.time() - status.st_mtime > _NEW_S and _take_lock(descriptor):
                path.unlink()


def _read(path: Path) -> str:
    """What a file of this user's says whose server lives; else ""."""
    try:
        with _opened(path) as (descriptor, status):
            private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
            if not private or _take_lock(descriptor):
                return ""
            text = os.read(descriptor, _BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if text.startswith(PREFIX) and text.isprintable() else ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A plain file that is no link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "is not a plain file", str(path))
        yield descriptor, status
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int) -> bool:
    """Whether nobody holds it: its server is gone."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
