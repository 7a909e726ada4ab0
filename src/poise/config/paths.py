"""Where poise keeps files of its own on this host."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def state_dir() -> Path:
    """Journals of engines that died. Not created here."""
    return Path(platformdirs.user_state_dir("poise", appauthor=False))


def cache_dir() -> Path:
    """Measurements and checks that can be made again. Not created here."""
    return Path(platformdirs.user_cache_dir("poise", appauthor=False))
