"""Whatever is wrong with a file, reading its header gives one clear line and never more than the file's size of work."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from poise.llama.binding.library import import_binding
from poise.llama.files.gguf import TENSOR_TYPES, ModelError, read_header
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, key, text, write_gguf


def check(path: Path, expected: str) -> None:
    """Reading fails with one line that names the file, says what is wrong and what to do."""
    with pytest.raises(ModelError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message
    assert ";" in message, "no advice"


def test_a_header_says_what_the_model_is(tmp_path: Path) -> None:
    """Keys, sizes and the exact end of the data."""
    header = read_header(write_gguf(tmp_path / "tiny.gguf"))
    assert header.architecture == "llama"
    assert header.number("block_count") == 2
    assert header.per_layer("attention.head_count_kv", 2) == [2, 1]
    assert header.per_layer("attention.head_count", 2) == [4, 4]
    assert header.per_layer("no.such.key", 2) == []
    assert header.n_params == 64 * 3 + 64 * 32
    assert header.tensor_bytes == 64 * 3 * 2 + 64 * 32 * 34 // 32
    assert header.data_end == header.file_bytes
    assert "tokenizer.ggml.tokens" not in header.keys, "texts of the vocabulary are stepped over"


DAMAGED = {
    "empty": (b"", "is empty"),
    "another kind of file": (b"PK\x03\x04 this is an archive", "is not a GGUF file"),
    "magic only": (b"GGUF", "cut short inside its header"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "other byte order": (gguf_bytes(version=3 << 24), "GGUF version 50331648"),
    "no architecture": (gguf_bytes({"general.name": "x"}), "does not name its architecture"),
    "architecture is a number": (gguf_bytes({"general.architecture": 3}), "does not name its architecture"),
    "absurd number of keys": (gguf_bytes(n_keys=1 << 60), "is damaged"),
    "absurd number of tensors": (gguf_bytes(n_tensors=1 << 60), "is damaged"),
    "more keys than there are": (gguf_bytes(n_keys=len(TINY_KEYS) + 1), "GGUF"),
    "absurd number of layers": (gguf_bytes({**TINY_KEYS, "llama.block_count": 4_000_000_000}), "4,000,000,000 layers"),
    "absurd tensor": (gguf_bytes(tensors=[("t", (1 << 40, 1 << 40), 0)], with_data=False), "elements"),
    "tensor of five dimensions": (gguf_bytes(tensors=[("t", (1, 1, 1, 1, 1), 0)]), "5 dimensions"),
    "alignment 0": (gguf_bytes({**TINY_KEYS, "general.alignment": 0}), "alignment"),
}


@pytest.mark.parametrize("name", [name for name in DAMAGED if name != "more keys than there are"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    """Each kind of damage has its own words."""
    data, expected = DAMAGED[name]
    check(write_gguf(tmp_path / "damaged.gguf", data), expected)


def test_a_count_that_is_too_large_by_one_is_caught(tmp_path: Path) -> None:
    """What follows the keys is then read as one more, which cannot be right."""
    with pytest.raises(ModelError):
        read_header(write_gguf(tmp_path / "damaged.gguf", DAMAGED["more keys than there are"][0]))


def test_a_path_that_is_no_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a directory, a device, unreadable."""
    check(tmp_path / "missing.gguf", "does not exist")
    check(tmp_path, "is a directory")
    check(Path("/dev/null"), "is not a regular file")
    path = write_gguf(tmp_path / "secret.gguf")
    monkeypatch.setattr(Path, "open", _refuse)
    check(path, "cannot be read by this user")


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_every_truncation_is_found(tmp_path: Path) -> None:
    """Cut anywhere, in the header or in the data, the file is refused."""
    whole = gguf_bytes()
    end = read_header(write_gguf(tmp_path / "whole.gguf", whole)).data_end
    path = tmp_path / "cut.gguf"
    for n in [*range(1, 1200, 7), end - 1]:
        path.write_bytes(whole[:n])
        with pytest.raises(ModelError):
            read_header(path)
    check(write_gguf(path, whole[: end - 1]), f"is cut short: it has {end - 1:,} bytes and its header announces {end:,}")


def test_garbage_never_costs_more_than_its_size(tmp_path: Path) -> None:
    """Announced texts, arrays and names of any length allocate nothing."""
    path = tmp_path / "garbage.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    huge = struct.pack("<Q", 1 << 62)
    for tail in (
        huge,  # a key's name
        text("k") + struct.pack("<I", 8) + huge,  # a text
        text("k") + struct.pack("<II", 9, 8) + huge,  # an array of texts
        text("k") + struct.pack("<II", 9, 4) + huge,  # an array of numbers
        text("k") + struct.pack("<II", 9, 9) + huge,  # an array of arrays
        text("k") + struct.pack("<I", 99),  # an unknown type
        text("k") + struct.pack("<IIQQ", 9, 8, 3, 1 << 62),  # a text in an array
    ):
        path.write_bytes(head + tail + bytes(64))
        with pytest.raises(ModelError):
            read_header(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_raises_anything_else(tmp_path: Path, seed: int) -> None:
    """Bytes changed at random: a header or a ModelError, nothing else."""
    draw = random.Random(seed)
    whole, path = gguf_bytes(), tmp_path / f"random-{seed}.gguf"
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(4, 1000)] = draw.randrange(256)
        path.write_bytes(data)
        with suppress(ModelError):
            read_header(path)


def test_long_arrays_of_numbers_are_not_kept(tmp_path: Path) -> None:
    """Token scores and types belong to the vocabulary, which llama.cpp reads."""
    path = write_gguf(tmp_path / "x.gguf", gguf_bytes({**TINY_KEYS, "tokenizer.ggml.token_type": list(range(5000))}))
    assert "tokenizer.ggml.token_type" not in read_header(path).keys


def test_key_names_and_values_are_decoded_leniently(tmp_path: Path) -> None:
    """A text that is not UTF-8 is shown with replacement characters and does not stop the load."""
    data = bytearray(gguf_bytes())
    at = data.index(key("general.name", "Tiny")) + len(key("general.name", "Tiny")) - 4
    data[at : at + 4] = b"\xff\xfe\xfd\xfc"
    assert read_header(write_gguf(tmp_path / "x.gguf", bytes(data))).text("general.name") == "\ufffd" * 4


@pytest.mark.slow
def test_tensor_types_are_the_librarys() -> None:
    """The table of block sizes is what the installed ggml computes."""
    ggml = import_binding()._lib
    known = {t: (int(ggml.ggml_blck_size(t)), int(ggml.ggml_type_size(t))) for t in TENSOR_TYPES}
    assert known == TENSOR_TYPES


def shards(folder: Path, stem: str = "m", n: int = 3) -> list[Path]:
    """A model in shards, as llama-gguf-split writes them: only the first one has the model's keys."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(n):
        keys = {**(TINY_KEYS if i == 0 else {}), "split.no": i, "split.count": n, "split.tensors.count": 2 * n}
        path = folder / f"{stem}-{i + 1:05d}-of-{n:05d}.gguf"
        paths.append(write_gguf(path, gguf_bytes(keys)))
    return paths


def test_shards_count_whole(tmp_path: Path) -> None:
    """Also where they are links to files of other names, as in Hugging Face's cache."""
    one = read_header(write_gguf(tmp_path / "tiny.gguf"))
    blobs = shards(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(blobs):
        blob = path.rename(path.with_name(f"{i:064x}"))
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    header = read_header(tmp_path / "snapshot" / blobs[0].name)
    assert header.architecture == "llama"
    assert (header.n_tensors, header.n_params) == (3 * one.n_tensors, 3 * one.n_params)
    assert header.tensor_bytes == 3 * one.tensor_bytes
    assert header.file_bytes == sum(path.stat().st_size for path in (tmp_path / "snapshot").iterdir())
    assert header.matrix_types == {kind: 3 * n for kind, n in one.matrix_types.items()}


def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """The first one is to be named; what is missing, cut short, of another model or renamed is said by its name."""
    first, second, third = shards(tmp_path)
    check(second, f"later shard of its model; name the first one ({first.name})")
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"{third.name}: is cut short"):
        read_header(first)
    write_gguf(third)
    with pytest.raises(ModelError, match=rf"{third.name}: is not shard 3 of 3"):
        read_header(first)
    third.unlink()
    with pytest.raises(ModelError, match=rf"{third.name}: does not exist; {first.name} is the first of 3"):
        read_header(first)
    check(first.rename(tmp_path / "model.gguf"), "its name must end in -00001-of-00003.gguf")
