"""A real server in a home of its own: nothing of its requests is on disk, in its output, or another tenant's to see."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.canaries import Canaries
from tests.e2e.server import START_S_MAX, PoiseServer
from tests.holdings import FILES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRIES = 6
FOLDERS = {"config": ".config/poise", "state": ".local/state/poise", "cache": ".cache/poise"}


@dataclass
class Home:
    """A user's home, and the server that runs in it."""

    path: Path
    canaries: Canaries
    server: PoiseServer
    keys: dict[str, str]
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        return self.path / "output.log"

    def poise(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "poise", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=self.path, check=False)

    def ask(self, path: str, body: Any = None, key: str = "alice", method: str | None = None) -> tuple[int, bytes]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.keys[key]}"}
        request = urllib.request.Request(self.server.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def chat(self, key: str = "alice", **parameters: Any) -> tuple[int, bytes]:
        messages = [
            {"role": "system", "content": self.canaries["system"]},
            {"role": "user", "content": f"Repeat after me, please: {self.canaries['prompt']}"},
        ]
        body = {"model": "default", "messages": messages, "max_tokens": 8, "ignore_eos": True, **parameters}
        return self.ask("/v1/chat/completions", body, key)

    def cached_tokens(self, key: str) -> int:
        status, answer = self.chat(key)
        assert status == 200
        return int(json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "POISE_"))}
    environment |= {"HOME": str(path), "POISE_LOG": "debug"}
    canaries = Canaries("prompt", "system", "template", "field", "key")
    config = path / FOLDERS["config"] / "poise.toml"
    config.parent.mkdir(parents=True, mode=0o700)
    quick = '[engine]\nthreads = 1\n[model]\nweights = "as-is"\n'
    config.write_text(f'{quick}[audit]\nenabled = true\n[templates.faq]\ntext = "{canaries["template"]}"\n')
    keys = {}
    for name in ("alice", "bob"):
        made = [sys.executable, "-m", "poise", "keys", "add", name]
        keys[name] = subprocess.run(made, capture_output=True, text=True, env=environment, check=True).stdout.strip()
    made = [sys.executable, "-m", "poise", "keys", "add", "boss", "--admin"]
    keys["boss"] = subprocess.run(made, capture_output=True, text=True, env=environment, check=True).stdout.strip()
    with (path / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "poise", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=path, env=environment)
    server = PoiseServer(process, _url(path / "output.log", process), [])
    server.eventually(lambda: server.get("/health")[0] == 200, "ready")
    try:
        yield Home(path, canaries, server, keys, environment)
    finally:
        server.stop()


def _url(log: Path, process: subprocess.Popen[str]) -> str:
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"serving .* on (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def test_a_prefix_is_reused_by_its_own_tenant_only(home: Home) -> None:
    """The very same conversation, to the last token."""
    home.cached_tokens("alice")
    assert home.cached_tokens("alice") > 0
    assert home.cached_tokens("bob") == 0
    assert home.cached_tokens("bob") > 0, "what it has asked itself is its own"


def test_erasing_makes_cold(home: Home) -> None:
    """What is erased is computed again, and the answer says what there was; another tenant's stays."""
    home.cached_tokens("alice")
    home.cached_tokens("bob")
    status, answer = home.ask("/admin/tenants/alice/data", key="boss", method="DELETE")
    assert status == 200
    assert json.loads(answer)["erased"]["cells"] + json.loads(answer)["erased"]["entries"] > 0
    assert home.cached_tokens("alice") == 0
    assert home.cached_tokens("bob") > 0
    assert home.ask("/admin/tenants/alice/data", key="bob", method="DELETE")[0] == 401


def test_keys_follow_the_file(home: Home) -> None:
    """A key that is made or revoked while the server runs."""
    made = home.poise("keys", "add", "carol")
    home.keys["carol"] = made.stdout.strip()
    home.server.eventually(lambda: home.ask("/v1/models", key="carol")[0] == 200, "the new key is known")
    listed = json.loads(home.poise("keys", "list", "--json").stdout)
    (key_id,) = [row["id"] for row in listed if row["tenant"] == "carol"]
    assert home.poise("keys", "revoke", key_id).returncode == 0
    home.server.eventually(lambda: home.ask("/v1/models", key="carol")[0] == 401, "the key is revoked")


def test_an_engine_that_is_killed_leaves_nothing(home: Home) -> None:
    """In the middle of a stream; what the client gets of it is another matter."""
    engine = home.server.engine()
    body = {"model": "default", "prompt": home.canaries["prompt"], "max_tokens": 64, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {home.keys['alice']}"}
    request = urllib.request.Request(home.server.url + "/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        response.readline()
        engine.kill()
        response.read()
    home.server.eventually(lambda: home.server.get("/health")[0] == 200, "ready again")


def test_nothing_of_it_is_anywhere_afterwards(home: Home) -> None:
    """After good requests, bad ones, an engine that died and a dump of the journal.

    No canary and no key on disk or in the output, every file is one of the list, and the audit log verifies.
    """
    field = home.canaries["field"]
    bad = (
        b'{"prompt": "%b' % field.encode(),
        {"model": field, "prompt": field},
        {"model": "default", "prompt": field, "temperature": field},
        {"model": "default", "prompt": field * 4000},
    )
    for body in bad:
        assert home.ask("/v1/completions", body)[0] >= 400
    assert home.chat(template="faq")[0] == 400
    faq = {"model": "default", "messages": [{"role": "user", "content": field}], "template": "faq", "max_tokens": 2}
    assert home.ask("/v1/chat/completions", faq)[0] == 200
    seen = [home.ask(path, key="boss")[1] for path in ("/admin/journal", "/admin/requests")]
    seen += [home.ask(path, key="bob")[1] for path in ("/status", "/metrics", "/health", "/v1/models", "/v1/templates")]
    assert len(seen[0]) > 1000, "a journal"
    assert home.server.stop() == 0
    folders = {name: home.path / folder for name, folder in FOLDERS.items()}
    assert [home.canaries.found_in(data) for data in seen] == [[]] * len(seen)
    templates = {("template", folders["config"] / "poise.toml")}
    assert set(home.canaries.found_below(home.path)) == templates, "the operator's own configuration"
    for path in filter(Path.is_file, home.path.rglob("*")):
        assert not any(key in path.read_bytes().decode("latin-1") for key in home.keys.values()), path
    known = [file.where for file in FILES] + ["config/poise.toml"]
    for name, folder in folders.items():
        for path in filter(Path.is_file, folder.rglob("*")):
            where = f"{name}/{path.relative_to(folder).as_posix()}"
            assert any(fnmatch.fnmatch(where, pattern) for pattern in known), where
            private = path.stat().st_mode & 0o077 == 0
            assert private or name == "cache" or path.name == "poise.toml", where
    left = {path.relative_to(home.path).parts[0] for path in home.path.rglob("*") if path.is_file()}
    assert left == {".config", ".local", ".cache", "output.log"}
    verified = home.poise("audit", "verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    events = [json.loads(line)["event"] for line in home.poise("audit", "tail", "-n", "1000").stdout.splitlines()]
    assert (events[0], events[-1]) == ("start", "stop")
    assert {"request", "admin", "key_added", "key_revoked"} <= set(events)


def test_the_time_of_an_answer_does_not_tell(poise_server: PoiseServer) -> None:
    """A few tries of `scripts/measure_isolation.py`: it sees the owner's warm prefixes, and nothing across tenants."""
    command = [sys.executable, str(ROOT / "scripts" / "measure_isolation.py"), poise_server.url, "--tries", str(TRIES), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert found["other"]["cached_tokens"] == 0
    assert found["owner"]["cached_tokens"] > TRIES * 50
    assert found["owner"]["warm_ms"] < found["owner"]["fresh_ms"]


def test_a_server_for_everybody_does_not_start() -> None:
    """One line that says what to set, before anything is loaded."""
    command = [sys.executable, "-m", "poise", "serve", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("poise: whoever reaches 0.0.0.0 could use the server: make keys with `poise keys add NAME`")
    assert done.stderr.count("\n") == 1
