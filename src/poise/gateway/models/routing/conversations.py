"""What conversations were labelled before: a later request that begins with the same messages has at least that label.

Clients send whole conversations, and nothing says which of them go on. So the messages are digested one after the other, with a
key of this process; the digest up to the last one stands for the conversation. Only digests are kept, and only of conversations
whose label is above what their tenant's requests have anyway.

Where there are too many, a label is forgotten for all conversations of a tenant at once, the lowest first, and from then on that
is the lowest label of all its requests: labels only rise. What is too much in all is forgotten of who has most."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from poise.gateway.request.labels import Label
from poise.wire.text import Message

TENANT_MAX, ALL_MAX = 4096, 65_536
"""Conversations of a tenant, and of all: about 150 bytes each."""
_DIGEST_BYTES = 16


@dataclass(slots=True)
class _Book:
    """Of one tenant. All labels are above `floor`."""

    floor: Label = Label.PUBLIC
    labels: dict[bytes, Label] = field(default_factory=dict)


class Conversations:
    """The labels of all conversations. A restart forgets them."""

    def __init__(self, tenant_max: int = TENANT_MAX, all_max: int = ALL_MAX) -> None:
        self._key = secrets.token_bytes(32)
        self._limits = tenant_max, all_max
        self._books: dict[str, _Book] = {}
        self.n_kept = 0
        """Digests and tenants."""
        self._floor = Label.PUBLIC
        """Of every tenant: there are too many to know one of each."""

    def digests(self, messages: Sequence[Message]) -> list[bytes]:
        """For each message that of the conversation up to it. Reasoning and white space at the edges are no part of it: clients
        send back what was answered without them."""
        found, before = [], b""
        for m in messages:
            said = (m.role, m.content.strip(), m.name, [(call.name, call.arguments) for call in m.calls])
            hashed = blake2b(before, key=self._key, digest_size=_DIGEST_BYTES)
            hashed.update(msgspec.msgpack.encode(said))
            found.append(before := hashed.digest())
        return found

    def label(self, tenant: str, digests: Sequence[bytes]) -> Label:
        """The least that a request has that begins like this."""
        book = self._books.get(tenant, _Book())
        return max(self._floor, book.floor, *(book.labels.get(digest, Label.PUBLIC) for digest in digests))

    def remember(self, tenant: str, digests: Sequence[bytes], label: Label) -> None:
        """Whoever goes on with this conversation has this label, or more."""
        if not digests or label <= self.label(tenant, digests):
            return
        tenant_max, all_max = self._limits
        book = self._books.setdefault(tenant, _Book())
        self.n_kept += (not book.labels and not book.floor) + (digests[-1] not in book.labels)
        book.labels[digests[-1]] = label
        if len(book.labels) > tenant_max:
            self._raise(book, min(book.labels.values()))
        while self.n_kept > all_max:
            self._forget_some()

    def floor(self, tenant: str) -> Label:
        """The lowest label of its requests, for what had to be forgotten."""
        return max(self._floor, self._books.get(tenant, _Book()).floor)

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """What is known of a tenant's conversations goes, and with it what they had to be forgotten for."""
        book = self._books.pop(tenant, None)
        if book is None:
            return {"conversations": 0}
        self.n_kept -= 1 + len(book.labels)
        return {"conversations": len(book.labels)}

    def _raise(self, book: _Book, label: Label) -> None:
        book.floor = max(book.floor, label)
        n_before = len(book.labels)
        book.labels = {digest: one for digest, one in book.labels.items() if one > book.floor}
        self.n_kept -= n_before - len(book.labels)

    def _forget_some(self) -> None:
        largest = max(self._books.values(), key=lambda book: len(book.labels))
        if len(largest.labels) > 1:
            self._raise(largest, min(largest.labels.values()))
            return
        self._floor = min(max((book.floor, *book.labels.values())) for book in self._books.values())
        for tenant, book in list(self._books.items()):
            self._raise(book, self._floor)
            if not book.labels and book.floor == self._floor:
                del self._books[tenant]
                self.n_kept -= 1
