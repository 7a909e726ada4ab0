"""What people write, in files and as arguments: what is wrong with it is a line for its author."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A file or an argument that cannot be used; the message is one line for the person who wrote it."""


@contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """What goes wrong in reading a file and parsing its TOML is an InputError."""
    try:
        yield
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: is not UTF-8: byte {problem.start}") from problem
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{path}: not valid TOML: {problem}") from problem
