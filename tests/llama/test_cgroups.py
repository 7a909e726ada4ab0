"""How many threads this process may use: its affinity, and the CPU quotas of all groups that hold it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poise.llama.files.cgroups import usable_threads
from tests.llama.groups import fake_host

INNER = "0::/user.slice/poise.service\n"
V1 = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("groups", "files", "threads"),
    [
        ("", {}, 8),
        (INNER, {"user.slice/poise.service/cpu.max": "max 100000\n"}, 8),
        (INNER, {"user.slice/poise.service/cpu.max": "300000 100000\n"}, 3),
        (INNER, {"user.slice/cpu.max": "200000 100000", "user.slice/poise.service/cpu.max": "300000 100000"}, 2),
        (INNER, {"user.slice/poise.service/cpu.max": "max 100000", "user.slice/cpu.max": "400000 100000"}, 4),
        ("0::/gone/inside\n", {"cpu.max": "250000 100000"}, 2),
        (INNER, {"user.slice/cpu.max": "50000 100000"}, 1),
        (INNER, {"user.slice/cpu.max": "9000000 100000"}, 8),
        (INNER, {"user.slice/cpu.max": ""}, 8),
        (INNER, {"user.slice/cpu.max": "100000 0"}, 8),
        (V1, {"cpu/docker/x/cpu.cfs_quota_us": "-1\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"}, 8),
        (
            V1,
            {
                "cpu/docker/x/cpu.cfs_quota_us": "-1\n",
                "cpu/docker/x/cpu.cfs_period_us": "100000\n",
                "cpu/docker/cpu.cfs_quota_us": "150000\n",
                "cpu/docker/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, groups: str, files: dict[str, str], threads: int) -> None:
    """Of the process's own group and of every one around it, in whole cores; one thread is always left."""
    assert usable_threads(*fake_host(tmp_path, groups, files)) == threads
