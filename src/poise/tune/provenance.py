"""Where figures of tuning come from: the host, the versions, and the model that is really served."""

from datetime import UTC, datetime
from typing import Any

from poise.bench import provenance
from poise.config import Settings
from poise.llama.binding import library
from poise.llama.files.cachefile import file_digest
from poise.llama.files.gguf import ModelError
from poise.llama.fitting.fit import model_path

_COMPARED = {
    "cpu": ("host", "cpu"),
    "cores": ("host", "n_cpus_usable"),
    "model": ("model", "sha256"),
    "version of poise": ("versions", "poise"),
    "version of llama.cpp": ("versions", "llama.cpp"),
}


def describe(settings: Settings) -> dict[str, Any]:
    """Raises ModelError when there is no such model, and EngineLibraryError."""
    path = model_path(settings)
    try:
        digest = file_digest(path)
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": provenance.host(),
        "versions": provenance.versions() | {"llama.cpp": library.load().version().decode()},
        "commit": provenance.commit(),
        "model": {"path": str(path), "sha256": digest},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when figures were measured, in words."""
    found = []
    for what, (part, name) in _COMPARED.items():
        old, new = (document.get(part, {}).get(name) for document in (before, now))
        if old != new:
            found.append(f"{what}: measured with {old}, now {new}")
    return found
