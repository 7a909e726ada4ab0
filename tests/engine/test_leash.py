"""A child of poise ends with its parent, however that one ends, and takes neither keys nor core dumps with it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from poise.engine.leash import PARENT, child_environment

PARENT_OF_ONE = """
import os, subprocess, sys
from poise.engine.leash import child_environment
child = subprocess.Popen([sys.executable, *sys.argv[1:]], env=child_environment(), pass_fds=[int(os.environ["ALIVE"])])
child.wait()
"""
SILENT = """
import os, time
os.write(int(os.environ["ALIVE"]), b"x")
time.sleep(600)
"""
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
TIED = "from poise.engine.leash import tie_to_parent\ntie_to_parent()\n" + DEAF + SILENT


def orphan(*arguments: str) -> bytes:
    """Starts a parent with a child, kills the parent, and reads what the child had to say until it has ended."""
    ours, theirs = os.pipe()
    environment = {**os.environ, "ALIVE": str(theirs)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT_OF_ONE, *arguments], env=environment, pass_fds=[theirs])
    os.close(theirs)
    with open(ours, "rb", buffering=0) as alive:
        said = alive.read(1)
        parent.kill()
        parent.wait(10)
        return said + alive.read(1)  # the end of the pipe: nobody has it open any more


@pytest.mark.timeout(60)
def test_a_child_ends_with_its_parent() -> None:
    """Also after kill -9, and also in the middle of something that never looks at a socket."""
    assert orphan("-c", TIED) == b"x"


@pytest.mark.timeout(60)
def test_a_module_on_the_leash_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent.py").write_text(SILENT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    assert orphan("-m", "poise.engine.leash", "silent") == b"x"


def test_who_comes_too_late_ends_at_once() -> None:
    """Its parent was gone before it could be tied to it."""
    done = subprocess.run(
        [sys.executable, "-c", "from poise.engine.leash import tie_to_parent; tie_to_parent(); print('lives')"],
        env={**os.environ, PARENT: "1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_child_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_AUTH__KEYS", '{"alice": "secret"}')
    monkeypatch.setenv("POISE_API_KEY", "secret")
    monkeypatch.setenv("POISE_LOG", "info")
    assert "secret" not in "".join(child_environment().values())
    assert child_environment()["POISE_LOG"] == "info"


def test_no_process_leaves_a_core_dump() -> None:
    """The limit is that of the process and of each child; a dump that a program takes has no memory in it."""
    code = """
import subprocess, sys
from poise.engine.leash import no_core_dumps
no_core_dumps()
read = "import pathlib; print(*[pathlib.Path('/proc/self', n).read_text() for n in ('limits', 'coredump_filter')])"
print(subprocess.run([sys.executable, '-c', read], capture_output=True, text=True, check=True).stdout)
"""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    most = hard if hard == resource.RLIM_INFINITY else min(hard, 1 << 20)

    def allowed() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (most, hard))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=allowed, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4] == "0"
    assert done.stdout.split()[-1] == "00000000"
