"""Strings that occur nowhere else, and where they must not be found."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


class Canaries:
    """Unique texts by what they stand for.

    `found_in` looks for the beginning of each, as an error message may cut a value short, and for what base64 makes of it.
    """

    def __init__(self, *names: str) -> None:
        self._texts = {name: f"cnry{secrets.token_hex(8)}{name}" for name in names}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def found_in(self, data: bytes, *, but: Iterable[str] = ()) -> list[str]:
        """Names of the canaries that are in it."""
        return [name for name, text in self._texts.items() if name not in but and any(f in data for f in _forms(text))]

    def found_below(self, *folders: Path) -> list[tuple[str, Path]]:
        """Those in files, with the file."""
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return [(name, path) for path in files for name in self.found_in(path.read_bytes())]


def _forms(text: str) -> Iterator[bytes]:
    plain = text.encode()
    yield plain[:16]
    # In base64 the three ways to be cut into groups look different; the middle of each is the same wherever it begins.
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + plain)[4:20]
