"""Trouble for a server under test, which has this folder on its PYTHONPATH: each kind lasts as long as a file of its name exists.

leak    the engine keeps 16 MB more every half a second
disk    each fsync of the gateway takes three seconds
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("FAULTS_FOLDER", "/nonexistent"))
LEAK_MAX = 64


def leak() -> None:
    kept: list[bytes] = []
    while True:
        if not (FOLDER / "leak").exists():
            kept.clear()
        elif len(kept) < LEAK_MAX:
            kept.append(b"\x01" * (16 << 20))
        time.sleep(0.5)


def slow_fsync(fd: Any) -> None:
    if (FOLDER / "disk").exists():
        time.sleep(3)
    fsync(fd)


fsync = os.fsync
os.fsync = slow_fsync
if "poise.worker.engine.process" in sys.orig_argv:
    threading.Thread(target=leak, daemon=True).start()
