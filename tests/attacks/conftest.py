"""Two servers for all attacks: one that takes anybody, and one that asks for keys and puts everything on record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.besieged import Besieged, start

ADMIN_KEY = "operator-secret-key"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts a server here is slow."""
    for item in items:
        if {"anybodys", "keyed"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def anybodys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    """No key is declared: whoever sends one is the tenant of that key, the polite client as well as the others."""
    folder = tmp_path_factory.mktemp("anybodys")
    yield from _besieged(folder, f"auth.admin_key={ADMIN_KEY}", key="polite-secret-key", hostile_key="hostile-secret-key")


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    """Keys are needed, and there is an audit log."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = ("auth.required=true", "auth.keys.polite=polite-secret-key", "auth.keys.hostile=hostile-secret-key")
    settings = (*keys, f"auth.admin_key={ADMIN_KEY}", "audit.enabled=true", f"audit.path={folder / 'audit'}")
    yield from _besieged(folder, *settings, key="polite-secret-key", hostile_key="hostile-secret-key")


def _besieged(folder: Path, *settings: str, key: str, hostile_key: str) -> Iterator[Besieged]:
    server = start(*settings, folder=folder)
    try:
        yield Besieged(server, key=key, hostile_key=hostile_key, admin_key=ADMIN_KEY, audit=folder / "audit")
    finally:
        code = server.stop()
    assert code == 0
