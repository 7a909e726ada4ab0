"""The limit of open files is raised to what the system allows, in the process that asks."""

from __future__ import annotations

import subprocess
import sys

import pytest

SET_AND_RAISE = """
import resource
from poise.gateway.http.connections.files import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(64, 200), (200, 200)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int) -> None:
    """The hard one stays as it is."""
    code = SET_AND_RAISE.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["200", "200", "200"]
