"""A model file, checked before llama.cpp sees it, then loaded with its weights or with its vocabulary only.

A text worker loads the vocabulary (a sixth of a second, some tens of megabytes), the engine the whole. Whatever is wrong with
the file becomes one ModelError line; llama.cpp's own reasons are taken from its log."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Self

from poise.llama.binding import library
from poise.llama.binding.library import Library, ModelPointer
from poise.llama.binding.vocab import Vocab
from poise.llama.files.gguf import GgufHeader, ModelError, read_header
from poise.llama.files.memory import kv_bytes_per_token

__all__ = ["Model", "ModelError", "Vocab"]

_UNKNOWN_ARCHITECTURE = re.compile(r"unknown model architecture: '([^']*)'")
_LOADING_FAILED = re.compile(r"^.*error loading model: ")


class Model(AbstractContextManager["Model"]):
    """A loaded model. Close it after everything that was made from it."""

    def __init__(self, loaded: Library, pointer: ModelPointer, header: GgufHeader, gpu_layers: int) -> None:
        """Use `load`."""
        self.library = loaded
        self._pointer: ModelPointer | None = pointer
        self.header = header
        self.gpu_layers = gpu_layers
        self.vocab = Vocab(loaded, loaded.model_get_vocab(pointer))

    @classmethod
    def load(
        cls, path: Path, *, gpu_layers: int = 0, vocab_only: bool = False, progress: Callable[[float], None] | None = None
    ) -> Self:
        """Load a GGUF file. Raises ModelError, or EngineLibraryError when llama.cpp itself is not usable."""
        header = read_header(path)
        loaded = library.load()
        params = loaded.model_default_params()
        params.n_gpu_layers = gpu_layers
        params.vocab_only = vocab_only
        if progress is not None:
            params.progress_callback = loaded.progress_callback(_reporter(progress))
        loaded.log.clear()
        pointer = loaded.model_load_from_file(bytes(path.absolute()), params)
        if pointer is None:
            raise ModelError(path, _load_problem(loaded.log.reason()))
        model = cls(loaded, pointer, header, gpu_layers)
        if problem := model._unfit():
            model.close()
            raise ModelError(path, problem)
        return model

    def _unfit(self) -> str:
        generates = self.library.model_has_decoder(self.pointer) and not self.library.model_has_encoder(self.pointer)
        if not generates or self.library.model_is_diffusion(self.pointer):
            return f"is a {self.header.architecture} model, which does not generate text token by token; use another"
        if self.n_vocab < 1:
            return "has no vocabulary; use another file of this model"
        return ""

    @property
    def pointer(self) -> ModelPointer:
        assert self._pointer is not None, "the model is closed"
        return self._pointer

    @property
    def path(self) -> Path:
        return self.header.path

    @cached_property
    def description(self) -> str:
        """Architecture, number of parameters and quantisation, such as "llama 135M Q4_1"."""
        # Not llama_model_desc: it names the nearest size it knows ("256M" for this one), and none without the weights.
        file_type = self.header.keys.get("general.file_type")
        quantisation = self.library.ftype_name(file_type) if isinstance(file_type, int) else None
        n = self.header.n_params
        size = f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.0f}M"  # 7.2B, 135M
        parts = (self.header.architecture, size, (quantisation or b"").decode())
        return " ".join(part for part in parts if part)

    @property
    def n_vocab(self) -> int:
        return self.vocab.n_tokens

    @property
    def is_recurrent(self) -> bool:
        """Some of its layers remember a state instead of cells: what was computed cannot be taken back."""
        return self.library.model_is_recurrent(self.pointer) or self.library.model_is_hybrid(self.pointer)

    @property
    def context_train(self) -> int:
        """Positions the model was trained on."""
        return self.header.number("context_length") or self.library.model_n_ctx_train(self.pointer)

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights."""
        return self.header.tensor_bytes

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt."""
        template = self.library.model_chat_template(self.pointer, None)
        return None if template is None else template.decode("utf-8", "replace")

    def kv_bytes_per_token(self, kv_type: str) -> int:
        return kv_bytes_per_token(self.header, kv_type)

    def close(self) -> None:
        """Free the model. Later calls do nothing."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self.library.model_free(pointer)

    def __exit__(self, *_: object) -> None:
        self.close()


def _reporter(progress: Callable[[float], None]) -> Callable[[float, object], bool]:
    def report(done: float, _user_data: object) -> bool:
        progress(done)
        return True  # go on loading

    return report


def _load_problem(reason: str) -> str:
    unknown = _UNKNOWN_ARCHITECTURE.search(reason)
    if unknown:
        return f"has the architecture '{unknown[1]}', which this llama.cpp does not know; use another model"
    return f"llama.cpp cannot load it ({_LOADING_FAILED.sub('', reason)}); use another file of this model"
