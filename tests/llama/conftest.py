"""The real model, loaded once, for the slow tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poise.llama.binding.model import Model
from poise.llama.files.default_model import default_model


@pytest.fixture(scope="session")
def model_path() -> Path:
    return default_model()


@pytest.fixture(scope="session")
def model(model_path: Path) -> Iterator[Model]:
    with Model.load(model_path) as loaded:
        yield loaded
