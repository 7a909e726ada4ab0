"""Makes a model's file in another weight format once, in the user's cache directory, and finds it again.

    weights/SmolLM2-135M-1f0c9a2b71d3-q8_0-5d2e80c1.gguf          source, its SHA-256, format, how it was made
    weights/SmolLM2-135M-1f0c9a2b71d3-q8_0-5d2e80c1.gguf.sha256   as sha256sum writes it

A file appears complete or not at all: it is written under another name, checked, synchronised with the disk and, after its
checksum, renamed. Whoever makes files or removes them holds the folder's lock, so that of two processes that start together one
works and the other waits and finds the result. The cache may be deleted at any time; a file in use stays readable until it is
closed."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from poise.config.paths import cache_dir
from poise.llama.binding import library
from poise.llama.choosing.measure import library_versions
from poise.llama.files.cachefile import file_digest, write_text
from poise.llama.files.formats import WeightFormat
from poise.llama.files.gguf import GgufHeader, ModelError, read_header

SPARE_DISK_BYTES = 256 << 20
"""What stays free on the disk beside a new file."""
LOCK_POLL_S = 0.2
_RECIPE = 1
"""Another number makes all files again: raise it when they are made in another way."""


class CannotMake(Exception):
    """No file could be made; one line. The source can be served instead."""


class WeightsFolder:
    """The folder of files that poise made."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "weights"

    def path(self, source: Path, digest: str, wanted: WeightFormat) -> Path:
        """Where the source with that SHA-256 is kept in the wanted format."""
        versions = library_versions(library.load())
        recipe = repr((_RECIPE, wanted.ftype, wanted.embedding_type, versions))
        recipe_digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
        return self.folder / f"{_slug(source.stem)}-{digest[:12]}-{_slug(wanted.name)}-{recipe_digest}.gguf"

    def find(self, path: Path) -> bool:
        """Whether the file is there and is what was made; the checksum is read again only when the file was touched."""
        try:
            return file_digest(path) == _sidecar(path).read_text("ascii").split()[0]
        except (OSError, ValueError, IndexError):
            return False

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the folder's lock; `waiting` is called again and again until then. Raises CannotMake."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise CannotMake(f"{self.folder} cannot be written ({error.strerror})") from error
        with lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(LOCK_POLL_S)
                except OSError as error:
                    raise CannotMake(f"{self.folder} cannot be locked ({error.strerror})") from error
            yield

    def make(self, source: GgufHeader, target: Path, wanted: WeightFormat, threads: int) -> None:
        """Convert the source to `target`; the lock is held. Raises CannotMake, with nothing left behind."""
        # What a process left that died while it made a file: whoever holds the lock is the only one to make any.
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        needed = wanted.estimated_bytes(source) + SPARE_DISK_BYTES
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise CannotMake(f"{self.folder} has {free >> 20:,} MiB free, and {needed >> 20:,} are wanted")
            _convert(source.path, temporary, wanted, threads)
            _check(source, temporary)
            _synchronise(temporary)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            write_text(_sidecar(target), f"{digest}  {target.name}\n")
            os.replace(temporary, target)
            _synchronise(self.folder)
        except OSError as error:
            raise CannotMake(f"{self.folder} cannot be written ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)

    def prune(self, digest: str, keep: Path | None) -> None:
        """Remove what was made of this source, except `keep`; the lock is held."""
        for path in self.folder.glob(f"*-{digest[:12]}-*.gguf"):
            if path != keep:
                remove(path)


def remove(path: Path) -> None:
    """A file and its checksum."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        _sidecar(path).unlink(missing_ok=True)


def _convert(source: Path, target: Path, wanted: WeightFormat, threads: int) -> None:
    loaded = library.load()
    params = loaded.model_quantize_default_params()
    params.nthread = threads
    params.ftype = wanted.ftype
    params.token_embedding_type = params.output_tensor_type = wanted.embedding_type
    params.allow_requantize = True
    loaded.log.clear()
    if loaded.model_quantize(bytes(source.absolute()), bytes(target), params) != 0:
        raise CannotMake(f"llama.cpp cannot convert it to {wanted.name} ({loaded.log.reason()})")


def _check(source: GgufHeader, made: Path) -> None:
    """The file is complete and has as many weights as its source."""
    try:
        header = read_header(made)
    except ModelError as error:
        raise CannotMake(f"what llama.cpp made of it is not usable ({error})") from error
    if (header.n_tensors, header.n_params) != (source.n_tensors, source.n_params):
        raise CannotMake("what llama.cpp made of it has not all the weights of the source")


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:80]
