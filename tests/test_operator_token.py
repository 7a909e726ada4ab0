"""The file with a server's token: who finds it, whose it must be, and what becomes of one that was left over."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from poise.operator_token import TokenFile, find_token, write_token

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of the test's own: a runtime directory, and a state directory for hosts without one."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_a_token_is_found_by_the_servers_url_and_gone_with_it() -> None:
    """Random for each server, in a file of this user's only."""
    file, other = write_token("127.0.0.1", PORT), write_token("127.0.0.1", PORT + 1)
    assert file.token != other.token
    assert len(file.token) >= 43
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert find_token(URL) == find_token(f"http://localhost:{PORT}/v1") == file.token
    assert find_token(f"https://127.0.0.1:{PORT + 1}") == other.token
    file.close()
    assert find_token(URL) == ""
    assert not file.path.exists()
    other.close()


@pytest.mark.parametrize(
    ("listening", "url", "found"),
    [
        ("0.0.0.0", "http://127.0.0.1:8123", True),
        ("0.0.0.0", "http://localhost:8123", True),
        ("::", "http://[::1]:8123", True),
        ("::1", "http://localhost:8123", True),
        ("127.0.0.2", "http://127.0.0.1:8123", False),
        ("192.168.1.5", "http://192.168.1.5:8123", True),
        ("0.0.0.0", "http://192.168.1.5:8123", False),
        ("127.0.0.1", "http://poise.example:8123", False),
        ("127.0.0.1", "http://127.0.0.1.example:8123", False),
        ("127.0.0.1", "http://127.0.0.1", False),
        ("127.0.0.1", "http://[broken", False),
        ("127.0.0.1", "http://127.0.0.1:x", False),
    ],
)
def test_the_token_is_sent_to_no_other_machine(listening: str, url: str, found: bool) -> None:
    """A name could lead anywhere; only addresses of this machine, and the one that was listened on, are looked up."""
    file = write_token(listening, PORT)
    assert find_token(url) == (file.token if found else "")
    file.close()


def test_without_a_runtime_directory_it_is_in_the_state_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that has the other environment finds it all the same."""
    runtime = os.environ["XDG_RUNTIME_DIR"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    file = write_token("127.0.0.1", PORT)
    assert file.path.is_relative_to(home / "state" / "poise" / "run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert find_token(URL) == file.token
    file.close()


def left_over(age_s: float = 3600) -> TokenFile:
    """The file of a server that was killed so long ago."""
    file = write_token("127.0.0.1", PORT)
    os.utime(file.path, (0, file.path.stat().st_mtime - age_s))
    os.close(file._descriptor)
    return file


def test_what_a_killed_server_left_is_not_used_and_does_not_pile_up() -> None:
    """Somebody else may have its port by now."""
    file = left_over()
    assert find_token(URL) == ""
    assert file.path.exists()
    next_one = write_token("127.0.0.1", PORT + 1)
    assert sorted(path.name for path in file.path.parent.iterdir()) == [next_one.path.name]
    next_one.close()


def test_a_file_that_others_can_read_is_no_secret() -> None:
    """Neither is a link to one."""
    file = write_token("127.0.0.1", PORT)
    file.path.chmod(0o640)
    assert find_token(URL) == ""
    file.path.chmod(0o600)
    moved = file.path.with_name("elsewhere")
    file.path.rename(moved)
    file.path.symlink_to(moved)
    assert find_token(URL) == ""
    file.close()
    assert moved.exists(), "it is not the file that was made"


def test_a_name_that_is_taken_is_replaced_not_followed(home: Path) -> None:
    """A link in the place leads nobody's secret elsewhere, and a server that is started again has its own file."""
    target = home / "target"
    target.write_text("precious")
    first = write_token("127.0.0.1", PORT)
    first.path.unlink()
    first.path.symlink_to(target)
    second = write_token("127.0.0.1", PORT)
    assert target.read_text() == "precious"
    assert not second.path.is_symlink()
    assert find_token(URL) == second.token
    first.close()
    assert find_token(URL) == second.token, "a server takes away its own file only"
    second.close()


def test_a_directory_that_is_not_this_users_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, or nothing that can be written: the next place is taken, and without any it is an error that names it."""
    (home / "runtime" / "poise").symlink_to(home)
    file = write_token("127.0.0.1", PORT)
    assert file.path.is_relative_to(home / "state")
    file.close()
    (home / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    with pytest.raises(OSError, match="file"):
        write_token("127.0.0.1", PORT)
