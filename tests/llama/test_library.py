"""Loading llama.cpp's binding, and refusing one that does not fit."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from poise.llama.binding import library
from poise.llama.binding.library import EngineLibraryError, LogRing, default_params, import_binding, self_check

ERROR, WARN, INFO, CONTINUED = 4, 3, 2, 5


def shifted(params: Any, before: str, n_bytes: int) -> object:
    """The struct as this binding would see it if the library had a field of `n_bytes` more in front of `before`."""
    at = getattr(type(params), before).offset
    data = bytes(params)
    return type(params).from_buffer_copy(data[:at] + bytes(n_bytes) + data[at : len(data) - n_bytes])


def fields(params: Any) -> SimpleNamespace:
    """A stand-in with the same values, for changing single ones."""
    return SimpleNamespace(**{name: getattr(params, name) for name, *_ in type(params)._fields_ if name != "slack"})


@pytest.mark.slow
def test_the_installed_library_passes_its_check() -> None:
    """The library that `make engine` builds is the one its binding describes."""
    self_check(*default_params(import_binding()))
    assert library.load() is library.load(), "loaded once"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "n_bytes"),
    [("n_batch", 4), ("n_threads", 4), ("flash_attn_type", 4), ("type_k", 4), ("embeddings", 4), ("embeddings", 8),
     ("offload_kqv", 1), ("swa_full", 1)],
)  # fmt: skip
def test_an_inserted_context_field_is_noticed(before: str, n_bytes: int) -> None:
    """Wherever a newer llama.cpp puts a field, some value is not where it should be."""
    model, context, quantize = default_params(import_binding())
    with pytest.raises(EngineLibraryError, match="llama_context_params") as caught:
        self_check(model, shifted(context, before, n_bytes), quantize)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "n_bytes"), [("n_gpu_layers", 8), ("main_gpu", 4), ("check_tensors", 1)])
def test_an_inserted_model_field_is_noticed(before: str, n_bytes: int) -> None:
    """The same for the model's parameters."""
    model, context, quantize = default_params(import_binding())
    with pytest.raises(EngineLibraryError, match="llama_model_params"):
        self_check(shifted(model, before, n_bytes), context, quantize)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "n_bytes"), [("ftype", 4), ("allow_requantize", 1), ("pure", 1), ("imatrix", 8)])
def test_an_inserted_quantisation_field_is_noticed(before: str, n_bytes: int) -> None:
    """The same for the parameters that make other weights."""
    model, context, quantize = default_params(import_binding())
    with pytest.raises(EngineLibraryError, match="llama_model_quantize_params"):
        self_check(model, context, shifted(quantize, before, n_bytes))


@pytest.mark.slow
def test_a_wrong_default_is_named() -> None:
    """The message says which field differs and how."""
    model, context, quantize = (fields(params) for params in default_params(import_binding()))
    context.offload_kqv = False
    context.samplers = 1
    with pytest.raises(EngineLibraryError) as caught:
        self_check(model, context, quantize)
    assert "llama_context_params.offload_kqv is False and not True" in str(caught.value)
    assert "llama_context_params.samplers is not NULL" in str(caught.value)


@pytest.mark.slow
def test_the_package_itself_is_not_run() -> None:
    """Neither its __init__ nor what that would import (diskcache)."""
    code = "import sys, poise.llama.binding.library as l; l.load(); print(sorted(m for m in sys.modules if 'diskcache' in m))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to run."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineLibraryError, match="not installed: run `make engine`"):
        import_binding()


def test_a_library_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    """A shared object of another system, say. The stand-in package is taken away again."""
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the package was run')")
    (package / "llama_cpp.py").write_text("import ctypes; ctypes.CDLL('/nonexistent/libllama.so')")
    code = (
        "import sys; from poise.llama.binding.library import *\n"
        "try: import_binding()\n"
        "except EngineLibraryError as error: print(error, 'llama_cpp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.stdout.startswith("the llama.cpp library does not load (/nonexistent/libllama.so")
    assert done.stdout.endswith("run `make engine` False\n")


def test_a_missing_function_is_named() -> None:
    """A binding too old to have all that is used."""
    with pytest.raises(EngineLibraryError, match="has no llama_version"):
        library.Library(ModuleType("empty"))


def test_the_log_ring_keeps_what_explains_a_failure() -> None:
    """Warnings and errors, continued lines joined, progress dots left out; the first error is the reason."""
    ring = LogRing()
    assert ring.reason() == "no reason given"
    for level, text in (
        (INFO, b"loading\n"),
        (WARN, b"something odd\n"),
        (CONTINUED, b"....\n"),
        (ERROR, b"tensor 'x' "),
        (CONTINUED, b"is\nmissing\n"),
        (INFO, b"more\n"),
        (CONTINUED, b"and more\n"),
        (ERROR, b"failed to load\n"),
        (ERROR, None),
    ):
        ring.receive(level, text, None)
    assert ring.lines == ["something odd", "tensor 'x' is\nmissing", "failed to load"]
    assert ring.reason() == "tensor 'x' is missing"
    for i in range(1000):
        ring.receive(ERROR, b"line %d\n" % i, None)
    assert len(ring.lines) == library.LOG_LINES
    ring.clear()
    assert ring.lines == []


def test_the_structs_read_back_have_room_to_spare() -> None:
    """A library with a longer struct than the binding's writes into the room and not past it."""

    class Params(ctypes.Structure):
        _fields_ = (("n", ctypes.c_int32),)

    roomy = library._roomy(Params)
    assert ctypes.sizeof(roomy) >= ctypes.sizeof(Params) + 256
    assert roomy(n=7).n == 7
