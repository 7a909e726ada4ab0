"""Small JSON files in the user's cache directory: what was measured or verified once on this host.

A cache may be deleted, damaged or unwritable at any time: reading then finds nothing, and writing does nothing."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


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
