"""Where figures of tuning come from: the host, the versions, and the model that is really served."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from poise.bench import provenance
from poise.config import Settings
from poise.llama.binding import library
from poise.llama.files.digest import file_digest
from poise.llama.files.gguf import ModelError
from poise.llama.fitting.fit import model_path


def describe(settings: Settings) -> dict[str, Any]:
    """Raises ModelError when there is no such model, and EngineLibraryError."""
    path = model_path(settings)
    try:
        digest = file_digest(path)
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    found: dict[str, Any] = msgspec.to_builtins(
        {
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": provenance.host(),
            "versions": provenance.versions() | {"llama.cpp": library.load().version().decode()},
            "commit": provenance.commit(),
            "model": {"path": str(path), "sha256": digest},
        }
    )
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when figures were measured, in words."""
    found = []
    for what, place in (("cpu", ("host", "cpu")), ("cores", ("host", "n_cpus_usable")), ("model", ("model", "sha256"))):
        old, new = (_at(document, place) for document in (before, now))
        if old != new:
            found.append(f"{what}: measured with {old}, now {new}")
    for name in ("poise", "llama.cpp"):
        old, new = (_at(document, ("versions", name)) for document in (before, now))
        if old != new:
            found.append(f"version of {name}: measured with {old}, now {new}")
    return found


def _at(document: dict[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = document
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return found
