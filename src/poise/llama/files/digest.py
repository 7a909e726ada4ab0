"""SHA-256 of large files, worked out once: the answer is kept for as long as path, size and modification time stay the same."""

import hashlib
from pathlib import Path

from poise.config.paths import cache_dir
from poise.llama.files.cachefile import read_entries, write_entry


def file_digest(path: Path, verdicts: Path | None = None) -> str:
    """The file's SHA-256, from the cache or read now. Raises OSError."""
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
