"""llama.cpp's C API as far as poise uses it: the only module that touches llama_cpp.

Three things about the binding need care, and are dealt with here once:

- `import llama_cpp` runs a package that pulls in what poise does not want (diskcache). Only its ctypes module is imported,
  under a stand-in package that runs nothing.
- A library whose structs differ from the binding's definitions does not fail: it computes with misplaced settings. So the
  defaults are read back at start and compared with llama.cpp's own, and a difference is fatal (`self_check`).
- llama.cpp explains a failure only in its log. The log goes to a small ring, so that an error can quote its reason; nothing
  is printed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections import deque
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NewType, Protocol

if TYPE_CHECKING:
    IntPointer = ctypes._Pointer[ctypes.c_int32]
    FloatPointer = ctypes._Pointer[ctypes.c_float]
    BytePointer = ctypes._Pointer[ctypes.c_uint8]
    Buffer = ctypes.Array[ctypes.c_char]

ModelPointer = NewType("ModelPointer", int)
VocabPointer = NewType("VocabPointer", int)
ContextPointer = NewType("ContextPointer", int)
MemoryPointer = NewType("MemoryPointer", int)

FLASH_OFF = 0
FLASH_ON = 1
KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
"""ggml_type of the KV cell types that poise offers."""

LOG_LINES = 40
_LOG_WARN = 3
_LOG_ERROR = 4
_LOG_CONTINUED = 5
_SLACK_BYTES = 256


class EngineLibraryError(Exception):
    """llama.cpp's library is missing, does not load, or is not the one its binding describes. One line."""


class ModelParams(Protocol):
    """struct llama_model_params, as far as it is set."""

    n_gpu_layers: int
    vocab_only: bool
    progress_callback: object


class ContextParams(Protocol):
    """struct llama_context_params, as far as it is set."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs_max: int
    n_threads: int
    n_threads_batch: int
    flash_attn_type: int
    type_k: int
    type_v: int
    no_perf: bool
    kv_unified: bool


class QuantizeParams(Protocol):
    """struct llama_model_quantize_params, as far as it is set."""

    nthread: int
    ftype: int
    output_tensor_type: int
    token_embedding_type: int
    allow_requantize: bool


class BatchStruct(Protocol):
    """struct llama_batch."""

    n_tokens: int
    token: IntPointer
    pos: IntPointer
    n_seq_id: IntPointer
    seq_id: ctypes._Pointer[IntPointer]
    logits: ctypes._Pointer[ctypes.c_int8]


class Library:
    """The functions, each named as in llama.h without the prefix `llama_`, and the structs they take.

    Pointers that a function may return as NULL are None here."""

    version: Callable[[], bytes]
    print_system_info: Callable[[], bytes]
    backend_init: Callable[[], None]
    log_set: Callable[[object, None], None]
    model_default_params: Callable[[], ModelParams]
    model_load_from_file: Callable[[bytes, ModelParams], ModelPointer | None]
    model_free: Callable[[ModelPointer], None]
    model_get_vocab: Callable[[ModelPointer], VocabPointer]
    ftype_name: Callable[[int], bytes | None]
    model_n_ctx_train: Callable[[ModelPointer], int]
    model_chat_template: Callable[[ModelPointer, None], bytes | None]
    model_has_encoder: Callable[[ModelPointer], bool]
    model_has_decoder: Callable[[ModelPointer], bool]
    model_is_diffusion: Callable[[ModelPointer], bool]
    model_is_recurrent: Callable[[ModelPointer], bool]
    model_is_hybrid: Callable[[ModelPointer], bool]
    model_quantize_default_params: Callable[[], QuantizeParams]
    model_quantize: Callable[[bytes, bytes, object], int]
    vocab_n_tokens: Callable[[VocabPointer], int]
    vocab_is_eog: Callable[[VocabPointer, int], bool]
    vocab_bos: Callable[[VocabPointer], int]
    vocab_eos: Callable[[VocabPointer], int]
    vocab_pad: Callable[[VocabPointer], int]
    vocab_fim_pre: Callable[[VocabPointer], int]
    vocab_fim_suf: Callable[[VocabPointer], int]
    vocab_fim_mid: Callable[[VocabPointer], int]
    vocab_get_add_bos: Callable[[VocabPointer], bool]
    tokenize: Callable[[VocabPointer, bytes, int, IntPointer | None, int, bool, bool], int]
    token_to_piece: Callable[[VocabPointer, int, Buffer, int, int, bool], int]
    context_default_params: Callable[[], ContextParams]
    init_from_model: Callable[[ModelPointer, ContextParams], ContextPointer | None]
    free: Callable[[ContextPointer], None]
    set_n_threads: Callable[[ContextPointer, int, int], None]
    get_memory: Callable[[ContextPointer], MemoryPointer]
    decode: Callable[[ContextPointer, BatchStruct], int]
    get_logits_ith: Callable[[ContextPointer, int], FloatPointer]
    synchronize: Callable[[ContextPointer], None]
    memory_seq_rm: Callable[[MemoryPointer, int, int, int], bool]
    memory_seq_cp: Callable[[MemoryPointer, int, int, int, int], None]
    memory_clear: Callable[[MemoryPointer, bool], None]
    memory_seq_pos_max: Callable[[MemoryPointer, int], int]
    state_seq_get_size: Callable[[ContextPointer, int], int]
    state_seq_get_data: Callable[[ContextPointer, BytePointer, int, int], int]
    state_seq_set_data: Callable[[ContextPointer, BytePointer, int, int], int]

    def __init__(self, binding: ModuleType) -> None:
        for name in Library.__annotations__:
            function = getattr(binding, f"llama_{name}", None)
            if function is None:
                raise EngineLibraryError(f"the llama.cpp library has no llama_{name}: run `make engine`")
            setattr(self, name, function)
        self.batch: Callable[[], BatchStruct] = binding.llama_batch
        self.progress_callback: Callable[[Callable[[float, object], bool]], object] = binding.llama_progress_callback
        self.log = LogRing()
        # ctypes keeps no reference to a callback; the ring lives as long as the library, which is for ever.
        self._log_callback = binding.llama_log_callback(self.log.receive)


class LogRing:
    """The last warnings and errors of llama.cpp, oldest first."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)
        self._level = 0

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self._lines]

    def receive(self, level: int, text: bytes | None, _user_data: object) -> None:
        """The C callback. A continued line belongs to the line before it."""
        line = (text or b"").decode("utf-8", "replace").rstrip("\n")
        if level != _LOG_CONTINUED:
            self._level = level
        if self._level not in (_LOG_WARN, _LOG_ERROR) or not line.strip(" ."):
            return
        if level == _LOG_CONTINUED and self._lines:
            self._lines[-1] = (self._level, self._lines[-1][1] + line)
        else:
            self._lines.append((self._level, line))

    def clear(self) -> None:
        self._lines.clear()

    def reason(self) -> str:
        """Why something failed, on one line: the first error since `clear` (later ones only say that it failed)."""
        errors = [line for level, line in self._lines if level == _LOG_ERROR]
        line = next(iter(errors or self.lines), "no reason given")
        return " ".join(line.split())


@cache
def load() -> Library:
    """The library, loaded, checked and initialised once. Raises EngineLibraryError."""
    binding = import_binding()
    self_check(*default_params(binding))
    library = Library(binding)
    library.log_set(library._log_callback, None)
    library.backend_init()
    return library


def import_binding() -> ModuleType:
    """llama_cpp's ctypes module, without running llama_cpp's own __init__."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise EngineLibraryError("the llama.cpp library (llama-cpp-python) is not installed: run `make engine`")
    # On a failed assertion ggml would start a debugger for a stack trace, and hold the dying process up for seconds.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    stand_in = "llama_cpp" not in sys.modules
    if stand_in:
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        if stand_in:
            del sys.modules["llama_cpp"]
        reason = " ".join(str(error).split())
        raise EngineLibraryError(f"the llama.cpp library does not load ({reason}): run `make engine`") from error


def default_params(binding: ModuleType) -> list[object]:
    """llama.cpp's default model, context and quantisation parameters, read with room to spare.

    A library with longer structs than the binding's would write past the binding's; the room keeps that harmless, so that the
    check is reached."""
    functions = ((f"{of}_default_params", _roomy(getattr(binding, f"{of}_params"))) for of in _DEFAULTS)
    return [ctypes.CFUNCTYPE(roomy)((name, binding._lib))() for name, roomy in functions]


def _roomy(layout: Any) -> Any:
    """The struct with spare bytes after it."""
    fields = [*layout._fields_, ("slack", ctypes.c_char * _SLACK_BYTES)]
    return type("Roomy", (ctypes.Structure,), {"_fields_": fields})


def self_check(*defaults: object) -> None:
    """Refuse a library whose structs are laid out differently from the binding's definitions.

    An inserted field moves everything after it, so the values compared stand all over the structs, on both sides of and
    between their bools; pointers are expected to be NULL. What cannot be seen is a bool that is false by default and was
    inserted after the last one that is true."""
    wrong = []
    for (of, expected), params in zip(_DEFAULTS.items(), defaults, strict=True):
        for name, value in expected.items():
            found = getattr(params, name)
            if value is None and found:
                wrong.append(f"{of}_params.{name} is not NULL")
            elif value is not None and found != value:
                wrong.append(f"{of}_params.{name} is {found} and not {value}")
    if wrong:
        found = ", ".join(wrong)
        raise EngineLibraryError(f"the llama.cpp library does not match its Python binding ({found}): run `make engine`")


_DEFAULTS: dict[str, dict[str, object]] = {
    "llama_model": {
        "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "vocab_only": False,
        "check_tensors": False, "use_extra_bufts": True, "no_host": False, "no_alloc": False, "load_mtp": False,
        "tensor_buft_overrides": None, "tensor_split": None, "progress_callback": None, "kv_overrides": None,
    },
    "llama_context": {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_rs_seq": 0, "n_outputs_max": 0,
        "n_outputs_max_per_seq": 1, "n_threads": 4, "n_threads_batch": 4, "ctx_type": 0, "rope_scaling_type": -1,
        "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0, "yarn_ext_factor": -1.0,
        "yarn_orig_ctx": 0, "defrag_thold": -1.0, "type_k": KV_TYPES["f16"], "type_v": KV_TYPES["f16"], "embeddings": False,
        "offload_kqv": True, "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False, "n_samplers": 0,
        "cb_eval": None, "cb_eval_user_data": None, "abort_callback": None, "abort_callback_data": None, "samplers": None,
        "ctx_other": None,
    },
    "llama_model_quantize": {
        "nthread": 0, "ftype": 7, "output_tensor_type": 43, "token_embedding_type": 43, "allow_requantize": False,
        "quantize_output_tensor": True, "only_copy": False, "pure": False, "keep_split": False, "dry_run": False,
        "max_buf_size": 8 << 30, "imatrix": None, "kv_overrides": None, "tt_overrides": None, "prune_layers": None,
    },
}  # fmt: skip
"""By struct. None: a pointer that is NULL."""
