"""The audit log's lines: a chain, in which each line vouches for the one before it.

A line is one JSON object in one spelling only (sorted keys, no spaces):

    seq       1, 2, 3, ... without a gap, over all files
    time      when it was put on record, UTC
    event     what kind of entry it is
    ...       the entry's own fields
    prev      the hash of the line before; of the first one, 64 zeros
    hash      HMAC-SHA256 of all this
    content   text of prompts and answers, only where the tenant's policy asks for it; not part of `hash`, ...
    content_mac   ... but this is, which is the HMAC of `content`

So a line cannot be edited, left out, put in or moved without the key; and content can be erased, which leaves a line that still
holds. The key is made from the pepper of the keys file. The end of the chain is in no line: the head file says how far it goes.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

GENESIS = "0" * 64
_OWN = ("seq", "prev", "hash", "content", "content_mac")


class ChainError(ValueError):
    """A line that is not what was written; the message says how that shows."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: the number of a line, and its hash."""

    seq: int
    hash: str


START = Link(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Head:
    """What the head file says: the first line that is kept, the hash before it, and the last line that was on disk."""

    first: Link
    """The line before the first one that is kept."""
    last: Link

    def encode(self, key: bytes) -> bytes:
        body = {"before_first": asdict(self.first), "last": asdict(self.last)}
        return _spelled(body | {"mac": _mac(key, _spelled(body))}) + b"\n"

    @classmethod
    def decode(cls, data: bytes, key: bytes) -> "Head":
        """Raises ChainError."""
        try:
            body = json.loads(data)
            mac = body.pop("mac")
            first, last = (Link(int(body[name]["seq"]), str(body[name]["hash"])) for name in ("before_first", "last"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChainError("the head file cannot be read") from error
        if not _same(mac, _mac(key, _spelled(body))):
            raise ChainError("the head file was changed, or made with another pepper")
        return cls(first, last)


def audit_key(pepper: bytes) -> bytes:
    return hmac.digest(pepper, b"poise audit chain", sha256)


def encode_line(
    after: Link, fields: Mapping[str, Any], key: bytes, content: Mapping[str, Any] | None = None
) -> tuple[bytes, Link]:
    """The line that follows `after`, without its line feed, and its place."""
    assert not any(name in fields for name in _OWN), "the chain's own names"
    entry = {**fields, "seq": after.seq + 1, "prev": after.hash}
    if content is not None:
        entry["content_mac"] = _mac(key, _spelled(content))
    entry["hash"] = _mac(key, _spelled(entry))
    link = Link(after.seq + 1, entry["hash"])
    return _spelled(entry if content is None else {**entry, "content": content}), link


def check_line(line: bytes, after: Link, key: bytes) -> tuple[dict[str, Any], Link]:
    """The entry on the line that follows `after`. Raises ChainError."""
    entry = parse(line)
    seq = entry.get("seq")
    if type(seq) is not int or seq != after.seq + 1:
        raise ChainError(f"has the number {seq!r} where {after.seq + 1} must follow")
    if entry.get("prev") != after.hash:
        raise ChainError("does not follow the line before it")
    if "content" in entry and not _same(entry.get("content_mac"), _mac(key, _spelled(entry["content"]))):
        raise ChainError("its content was changed")
    vouched = {name: value for name, value in entry.items() if name not in ("hash", "content")}
    if not _same(entry.get("hash"), _mac(key, _spelled(vouched))):
        raise ChainError("was changed")
    return entry, Link(seq, str(entry["hash"]))


def parse(line: bytes) -> dict[str, Any]:
    """An entry, if it is spelled as entries are. Raises ChainError."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChainError("is not an entry") from error
    if not isinstance(entry, dict) or _spelled(entry) != line:
        raise ChainError("is not spelled as an entry is")
    return entry


def without_content(line: bytes) -> bytes:
    """The same entry with its content erased. Its hash still holds."""
    return _spelled({name: value for name, value in parse(line).items() if name != "content"})


def _spelled(value: object) -> bytes:
    """The one spelling. What JSON can say in two ways (a number as 1.0 or 1e0) is said in Python's."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _mac(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, sha256).hex()


def _same(given: object, mac: str) -> bool:
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, mac)
