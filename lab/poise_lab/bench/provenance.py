"""Where a result comes from: this host, the versions, the commit."""

import os
import platform
import subprocess
from pathlib import Path

import aiohttp
import psutil

from poise import __version__


def host() -> dict[str, object]:
    return {
        "name": platform.node(),
        "cpu": _cpu_name(),
        "n_cpus": os.cpu_count(),
        "n_cpus_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def versions() -> dict[str, object]:
    return {"poise": __version__, "python": platform.python_version(), "aiohttp": aiohttp.__version__}


def commit() -> str | None:
    """The commit of the checkout that this client runs from, with "-dirty" if tracked files differ; None: no checkout."""
    here = Path(__file__).resolve().parent
    found = _git(here, "rev-parse", "HEAD")
    if found is None or _git(here, "ls-files", "--error-unmatch", __file__) is None:
        return None  # Installed into somebody else's repository.
    return found + ("-dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]  # whichever git the user has
    try:
        found = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
