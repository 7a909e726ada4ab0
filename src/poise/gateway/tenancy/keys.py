"""The keys file: which keys there are, as hashes; made by `poise keys`, read by the running server.

A key is `pk-` and 256 random bits, shown once when it is made. On disk is its HMAC-SHA256 under a pepper, a secret in a file of
its own: a copy of the keys file alone neither opens anything nor lets anybody check a guess. One JSON object a line; a revoked
key stays in the file, so that its id keeps its meaning in the audit log.

Both files are this user's only (mode 0600) and are replaced, never changed in place, so that a reader sees one state or the
next. Writers take turns by a lock on the pepper's file. Losing the pepper makes every key useless; changing it does the same,
which is why there is no command for it: keys of 256 random bits cannot be guessed even with the pepper known."""

import contextlib
import fcntl
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from poise.audit.files import replace_file
from poise.config.kinds import DataClass

log = logging.getLogger(__name__)

PREFIX = "pk-"
PEPPER_NAME = "keys.pepper"
CHECK_EVERY_S = 1.0
"""The running server looks for a changed file at most this often."""
_PEPPER_BYTES = 32


class KeysError(Exception):
    """The keys file cannot be used; the message is one line and says what to do."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as the file has it. Times are UTC; `classes` empty: whatever its tenant may use.

    An `admin` key opens /admin and nothing else; its `tenant` is then the operator's name for the audit log."""

    id: str
    tenant: str
    hash: str
    created: datetime
    comment: str = ""
    expires: datetime | None = None
    classes: list[str] = []
    admin: bool = False
    data_class: DataClass | Literal[""] = ""
    """The least label that requests with it have."""
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class KeysFile:
    """The file as its writer sees it. Every method reads or replaces it at once. Raises KeysError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pepper_path = path.parent / PEPPER_NAME

    def read(self) -> list[Key]:
        """The keys in the order in which they were made; none when there is no file."""
        if not self._path.exists():
            return []
        keys = []
        for number, line in enumerate(_read_private(self._path).splitlines(), 1):
            try:
                keys.append(msgspec.json.decode(line, type=Key))
            except msgspec.DecodeError as error:
                raise KeysError(f"{self._path}: line {number} is not a key: {error}") from None
        return keys

    def add(
        self,
        tenant: str,
        *,
        comment: str = "",
        expires: datetime | None = None,
        classes: Sequence[str] = (),
        admin: bool = False,
        data_class: DataClass | Literal[""] = "",
    ) -> tuple[str, Key]:
        """A new key, and its record. The key itself is nowhere else."""
        text = PREFIX + secrets.token_urlsafe(32)
        with self._locked() as pepper:
            keys = self.read()
            key_id = next(i for i in iter(lambda: "k-" + secrets.token_hex(4), "") if all(i != key.id for key in keys))
            now = datetime.now(UTC).replace(microsecond=0)
            key = Key(key_id, tenant, digest(pepper, text), now, comment, expires, list(classes), admin, data_class)
            self._replace([*keys, key])
        return text, key

    def revoke(self, key_id: str) -> Key:
        """The record of a key that no longer opens anything."""
        with self._locked():
            keys = self.read()
            found = next((key for key in keys if key.id == key_id), None)
            if found is None:
                raise KeysError(f"{self._path} has no key {key_id!r}; `poise keys list` shows them")
            if found.revoked is None:
                revoked = msgspec.structs.replace(found, revoked=datetime.now(UTC).replace(microsecond=0))
                self._replace([revoked if key is found else key for key in keys])
                found = revoked
        return found

    def pepper(self) -> bytes:
        """The secret that hashes are made with; made at its first use."""
        with self._locked() as pepper:
            return pepper

    def read_pepper(self) -> bytes:
        """The same, for one who may only read."""
        return self._parse_pepper(_read_private(self._pepper_path))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bytes]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._pepper_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeysError(f"{self._pepper_path}: cannot be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _check_private(self._pepper_path, os.fstat(file.fileno()))
            if not (text := file.read()):
                text = secrets.token_hex(_PEPPER_BYTES).encode()
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            yield self._parse_pepper(text)

    def _parse_pepper(self, text: bytes) -> bytes:
        try:
            pepper = bytes.fromhex(text.decode().strip())
        except ValueError:
            pepper = b""
        if len(pepper) != _PEPPER_BYTES:
            raise KeysError(f"{self._pepper_path}: is not a pepper of {2 * _PEPPER_BYTES} hex digits; restore it")
        return pepper

    def _replace(self, keys: list[Key]) -> None:
        try:
            replace_file(self._path, b"".join(msgspec.json.encode(key) + b"\n" for key in keys))
        except OSError as error:
            raise KeysError(f"{self._path}: cannot be written: {error.strerror}") from error


class KeyRing:
    """The keys as the running server knows them: read again when the file has changed, with no restart.

    A file that cannot be read, or is gone, leaves the keys as they were, and one line in the log."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises KeysError when there is a file that cannot be used: a server must not start without its keys."""
        self._file = KeysFile(path)
        self._path = path
        self._clock = clock
        self._keys: list[Key] = []
        self._pepper = b""
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = clock()
        self.on_change: Callable[[list[Key], list[Key]], None] = lambda *_: None
        """Told of the keys before and after."""
        if (stamp := self._stamp_now()) is not None:
            self._load(stamp)

    @property
    def keys(self) -> list[Key]:
        now_s = self._clock()
        if now_s - self._looked_s >= CHECK_EVERY_S:
            self._looked_s = now_s
            self._look()
        return self._keys

    def valid(self) -> list[Key]:
        now = datetime.now(UTC)
        return [key for key in self.keys if key.state(now) == "valid"]

    def find(self, text: str) -> Key | None:
        """The valid key that this is. All are compared, in constant time: the time must not tell which one matched."""
        keys = self.keys
        if not keys:
            return None
        presented, now = digest(self._pepper, text), datetime.now(UTC)
        matching = [key for key in keys if hmac.compare_digest(key.hash, presented)]
        return matching[-1] if matching and matching[-1].state(now) == "valid" else None

    def _look(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        if stamp is None:
            log.error("%s is gone; its keys stay in force until it is there again", self._path)
            self._stamp = None
            return
        try:
            self._load(stamp)
        except KeysError as error:
            self._stamp = stamp  # once is enough; the next change is looked at again
            log.error("%s; the keys stay as they were", error)

    def _load(self, stamp: tuple[int, int, int]) -> None:
        keys, pepper = self._file.read(), self._file.read_pepper()
        before, self._keys, self._pepper, self._stamp = self._keys, keys, pepper, stamp
        self.on_change(before, keys)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def digest(pepper: bytes, key: str) -> str:
    return hmac.digest(pepper, key.encode("utf-8", "surrogateescape"), sha256).hex()


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise KeysError(f"{path}: cannot be read: {error.strerror}") from error


def _check_private(path: Path, status: os.stat_result) -> None:
    if status.st_mode & 0o077:
        raise KeysError(f"{path}: other users of this machine may use it; run `chmod 600 {path}`")
