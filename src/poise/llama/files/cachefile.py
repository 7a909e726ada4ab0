"""Small JSON files in the user's cache directory: what was measured or verified once on this host, as SHA-256 of large files.

A cache may be deleted, damaged or unwritable at any time: reading then finds nothing, and writing does nothing."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from poise.config.paths import cache_dir


def read_entries(path: Path) -> dict[str, Any]:
    """The file's entries; none when it is missing or not what `write_entry` wrote."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def write_entry(path: Path, key: str, entry: object) -> None:
    """Add or replace one entry; None takes it out. Readers see the old file or the new one, never a part."""
    entries = {**read_entries(path), key: entry}
    # If it fails, the next start measures or verifies again.
    with contextlib.suppress(OSError):
        write_text(path, json.dumps({key: entry for key, entry in entries.items() if entry is not None}, indent=1))


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go, on the disk when this returns. Raises OSError, with nothing half-written left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise


def file_digest(path: Path, verdicts: Path | None = None) -> str:
    """The file's SHA-256, read now or kept for as long as path, size and modification time stay the same. Raises OSError."""
    digest = known_digest(path, verdicts)
    if digest is None:
        key = _key(path)  # before reading: a file that changes meanwhile is not taken for the one that was read
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        write_entry(verdicts or _verdicts(), key, digest)
    return digest


def known_digest(path: Path, verdicts: Path | None = None) -> str | None:
    """The file's SHA-256 if it was worked out before. Raises OSError."""
    digest = read_entries(verdicts or _verdicts()).get(_key(path))
    return digest if isinstance(digest, str) else None


def _verdicts() -> Path:
    return cache_dir() / "verified-models.json"


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}"
