"""Files that people write: what is wrong with one is a line for its author."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ScenarioError(ValueError):
    """A scenario or trace that cannot be used; the message is one line for the person who wrote the file."""


@contextmanager
def explained(path: Path, error: type[ValueError]) -> Iterator[None]:
    """What goes wrong in reading a file and parsing its TOML is raised as `error`, with one line."""
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not UTF-8: byte {problem.start}") from problem
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path}: not valid TOML: {problem}") from problem
