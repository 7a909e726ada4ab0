"""`poise doctor`: each thing that can be wrong is found, told with its numbers, and comes with a remedy."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from poise.commands.doctor import Diagnosis, Grade, Host, examine, is_bad, to_json, to_text
from poise.config import LoadedSettings, load
from poise.gateway.tenancy.keys import KeysFile
from poise.operator_token import write_token
from tests.llama.gguf_files import write_gguf

PRESSURE = "some avg10=1.00 avg60={} avg300=0.10 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSettings:
    """The defaults with a small model, on a free port, in directories of the test's own."""
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    return settings(tmp_path)


def settings(tmp_path: Path, **overrides: object) -> LoadedSettings:
    model = write_gguf(tmp_path / "tiny.gguf")
    return load(
        None, {}, {"model.path": str(model), "server.port": "0"} | {k.replace("__", "."): v for k, v in overrides.items()}
    )


def host(tmp_path: Path, pressure: float = 0.0, **changes: Any) -> Host:
    (tmp_path / "pressure").mkdir(exist_ok=True)
    (tmp_path / "pressure" / "memory").write_text(PRESSURE.format(pressure))
    answers: dict[str, Any] = {"cores": lambda: 4, "load": lambda: 0.1, "files_max": lambda: 4096}
    return Host(proc=tmp_path, folders=(tmp_path,), **(answers | {"free_disk": lambda _: 1 << 40} | changes))


def found(diagnoses: list[Diagnosis], subject: str) -> list[Diagnosis]:
    return [diagnosis for diagnosis in diagnoses if diagnosis.subject == subject]


def test_a_host_in_order(tmp_path: Path, loaded: LoadedSettings) -> None:
    """Nothing to do, and the verdict says so; every subject is there."""
    diagnoses = examine(loaded, host(tmp_path))
    assert [f for f in diagnoses if f.grade is not Grade.OK] == []
    assert {f.subject for f in diagnoses} >= {
        *("system", "cores", "clock", "engine", "model", "memory", "keys", "address", "disk", "pressure", "open files")
    }
    assert not is_bad(diagnoses)
    assert to_text(diagnoses).endswith("`poise serve` can start; 0 warnings")
    assert [set(entry) for entry in json.loads(to_json(diagnoses))] == [{"subject", "grade", "text", "remedy"}] * len(diagnoses)


@pytest.mark.parametrize(
    ("subject", "changes", "told"),
    [
        ("cores", {"load": lambda: 3.5}, "load average 3.5"),
        ("clock", {"now_s": lambda: 0.0}, "1970-01-01"),
        ("disk", {"free_disk": lambda _: 10 << 20}, "10 MiB free"),
        ("pressure", {"pressure": 40.0}, "40 % of the last minute"),
        ("open files", {"files_max": lambda: 256}, "256 files"),
    ],
)
def test_what_is_wrong_with_the_host_is_a_warning(
    tmp_path: Path, loaded: LoadedSettings, subject: str, changes: dict[str, Any], told: str
) -> None:
    """With the figure and a remedy; the server could start all the same."""
    diagnoses = examine(loaded, host(tmp_path, **changes))
    (diagnosis,) = found(diagnoses, subject)
    assert diagnosis.grade is Grade.WARNING
    assert told in diagnosis.text
    assert diagnosis.remedy
    assert not is_bad(diagnoses)


def test_a_port_in_use_stops_a_start(tmp_path: Path, loaded: LoadedSettings) -> None:
    """By anybody; what to do is said."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        (diagnosis,) = found(examine(settings(tmp_path, server__port=str(port)), host(tmp_path)), "address")
    assert diagnosis.grade is Grade.BAD
    assert str(port) in diagnosis.text
    assert "--port" in diagnosis.remedy


@pytest.mark.parametrize("ours", [True, False])
def test_a_running_server_is_no_fault(
    tmp_path: Path, loaded: LoadedSettings, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """Its token says that it is this user's; another user's is known by its answer. Neither has to be mended."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))

    class Live(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "live": true}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Live) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        token = write_token("127.0.0.1", server.server_port) if ours else None
        diagnoses = examine(settings(tmp_path, server__port=str(server.server_port)), host(tmp_path))
        server.shutdown()
        thread.join()
        if token is not None:
            token.close()
    (diagnosis,) = found(diagnoses, "address")
    assert diagnosis.grade is (Grade.OK if ours else Grade.WARNING)
    assert ("your server" if ours else "not this user's") in diagnosis.text
    assert not is_bad(diagnoses)
    assert "a server is running" in to_text(diagnoses)


@pytest.mark.parametrize(("required", "grade"), [("auto", Grade.OK), ("false", Grade.WARNING)])
def test_keys_beside_an_open_door_are_told(tmp_path: Path, loaded: LoadedSettings, required: str, grade: Grade) -> None:
    """Whether a key is needed is said in every case."""
    given = settings(tmp_path, auth__required=required, auth__keys_file=str(tmp_path / "keys.jsonl"))
    KeysFile(tmp_path / "keys.jsonl").add("ann")
    (diagnosis,) = found(examine(given, host(tmp_path)), "keys")
    assert diagnosis.grade is grade
    assert ("every request needs one" if required == "auto" else "without one are answered") in diagnosis.text
    assert bool(diagnosis.remedy) is (grade is Grade.WARNING)


def test_a_missing_model_stops_a_start(tmp_path: Path, loaded: LoadedSettings) -> None:
    diagnoses = examine(settings(tmp_path, model__path=str(tmp_path / "none.gguf")), host(tmp_path))
    (diagnosis,) = found(diagnoses, "model")
    assert diagnosis.grade is Grade.BAD
    assert "none.gguf" in diagnosis.text
    assert is_bad(diagnoses)
    assert "1 to mend" in to_text(diagnoses)


def test_an_open_server_without_keys_stops_a_start(tmp_path: Path, loaded: LoadedSettings) -> None:
    (diagnosis,) = found(examine(settings(tmp_path, server__host="0.0.0.0"), host(tmp_path)), "exposure")
    assert diagnosis.grade is Grade.BAD
    assert "poise keys add NAME" in diagnosis.text


def test_keys_that_others_can_read_are_told(tmp_path: Path, loaded: LoadedSettings) -> None:
    """A poise.toml with keys in it, with the mode that it has."""
    file = tmp_path / "poise.toml"
    file.write_text('[auth.keys]\nann = "secret-of-ann"\n')
    file.chmod(0o644)
    (diagnosis,) = found(examine(load(file, {}, {"server.port": "0"}), host(tmp_path)), "permissions")
    assert diagnosis.grade is Grade.WARNING
    assert "0644" in diagnosis.text
    assert diagnosis.remedy == f"chmod 600 {file}"
    file.chmod(0o600)
    (diagnosis,) = found(examine(load(file, {}, {"server.port": "0"}), host(tmp_path)), "permissions")
    assert diagnosis.grade is Grade.OK


def test_a_name_is_judged_by_its_address(tmp_path: Path, loaded: LoadedSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a start does it: a name of this machine's own is not beyond it."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))])
    assert found(examine(settings(tmp_path, server__host="desk.example"), host(tmp_path)), "exposure") == []
