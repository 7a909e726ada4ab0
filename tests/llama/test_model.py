"""Loading a model, or saying in one line why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from poise.llama.binding.model import Model, ModelError
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, write_gguf


def check(path: Path, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_bad_file_never_reaches_llama_cpp(tmp_path: Path) -> None:
    """Not even the library is loaded for it."""
    check(tmp_path / "missing.gguf", "does not exist")
    check(tmp_path, "is a directory")
    check(write_gguf(tmp_path / "cut.gguf", gguf_bytes()[:-1]), "is cut short")


@pytest.mark.slow
@pytest.mark.parametrize("vocab_only", [True, False])
def test_an_unknown_architecture_is_named(tmp_path: Path, vocab_only: bool) -> None:
    """In llama.cpp's log it is one line of several. Run apart, in case a llama.cpp should abort."""
    path = write_gguf(tmp_path / "new.gguf", gguf_bytes({**TINY_KEYS, "general.architecture": "notanarch"}))
    code = (
        "import sys; from pathlib import Path; from poise.llama.binding.model import Model, ModelError\n"
        f"try: Model.load(Path(sys.argv[1]), vocab_only={vocab_only})\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    expected = "has the architecture 'notanarch', which this llama.cpp does not know; use another model"
    assert done.stdout == f"{path}: {expected}\n"
    assert done.stderr == "", "llama.cpp's log is not printed"


@pytest.mark.slow
def test_what_llama_cpp_refuses_gives_its_reason(tmp_path: Path) -> None:
    """A whole header whose tensors are not those of a model."""
    check(write_gguf(tmp_path / "odd.gguf"), r"llama.cpp cannot load it \(.*tokenizer.ggml.model\); use another file")


@pytest.mark.slow
def test_a_model_that_does_not_generate_text_is_refused(tmp_path: Path) -> None:
    """An encoder-decoder model: llama.cpp loads it, and could not serve it here."""
    keys = {name.replace("llama.", "t5."): value for name, value in TINY_KEYS.items()}
    keys |= {
        "general.architecture": "t5",
        "t5.attention.layer_norm_epsilon": 1e-6,
        "t5.attention.relative_buckets_count": 32,
        "tokenizer.ggml.model": "no_vocab",
    }
    path = write_gguf(tmp_path / "t5.gguf", gguf_bytes(keys, ()))
    with pytest.raises(ModelError, match="does not generate text"):
        Model.load(path, vocab_only=True)


@pytest.mark.slow
def test_a_loaded_model_describes_itself(model: Model) -> None:
    """The default model's figures."""
    assert model.description == "llama 135M Q4_1"
    assert (model.header.text("general.name") or "").startswith("Smollm2 135M")
    assert (model.n_vocab, model.context_train) == (49_152, 8192)
    assert 90e6 < model.size_bytes < 99e6
    assert model.kv_bytes_per_token("f16") == 30 * 3 * 128 * 2
    assert model.header.text("general.license") == "apache-2.0"
    assert model.header.text("tokenizer.chat_template") == model.chat_template
    assert "<|im_start|>" in (model.chat_template or "")


@pytest.mark.slow
def test_the_vocabulary_alone_is_enough_for_the_gateway(model: Model, model_path: Path) -> None:
    """Everything but computing, without the weights."""
    with Model.load(model_path, vocab_only=True) as text_only:
        assert text_only.description == model.description
        assert text_only.context_train == model.context_train
        assert text_only.chat_template == model.chat_template
        assert text_only.vocab.eog_tokens == model.vocab.eog_tokens
        sentence = "The quick brown fox."
        assert text_only.vocab.tokenize(sentence, add_special=True, parse_special=False) == model.vocab.tokenize(
            sentence, add_special=True, parse_special=False
        )


@pytest.mark.slow
def test_progress_is_reported_and_closing_twice_is_harmless(model_path: Path) -> None:
    """From near 0 to 1, never backwards."""
    seen: list[float] = []
    model = Model.load(model_path, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    model.close()
    model.close()
    with pytest.raises(AssertionError, match="closed"):
        _ = model.pointer
