"""Prometheus itself: it reads the rules, scrapes a running server, and answers queries with what was scraped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from poise.operator_token import find_token
from tests.e2e.server import POLL_S, PoiseServer

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = Path(sys.prefix) / "prometheus"


def program(name: str) -> str:
    """Prometheus' own, where `scripts/install-prometheus.sh` puts them, or the system's."""
    path = shutil.which(name, path=str(FOLDER)) or shutil.which(name)
    if path is None and os.environ.get("POISE_PROMETHEUS") == "absent":
        pytest.skip(f"no Prometheus: fetch it with `scripts/install-prometheus.sh {FOLDER}` on Debian")
    assert path is not None, (
        f"These tests run Prometheus, which is missing: run `scripts/install-prometheus.sh {FOLDER}` on Debian, or set "
        "POISE_PROMETHEUS=absent to leave them out."
    )
    return path


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Prometheus:
    """A running one, on a free loopback port."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=30) as response:
            body = json.load(response)
        assert body["status"] == "success", body
        result = body["data"]["result"]
        assert isinstance(result, list)
        return result

    def value(self, expression: str) -> float | None:
        """Of the only sample; None without one."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None

    def eventually(self, condition: Callable[[], bool], what: str, within_s: float = 120.0) -> None:
        until = time.monotonic() + within_s
        while not condition():
            time.sleep(POLL_S * 5)
            assert self.process.poll() is None, "Prometheus ended:\n" + self.log.read_text()
            assert time.monotonic() < until, f"never came: {what}\n" + self.log.read_text()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[PoiseServer], Prometheus]]:
    """Starts a Prometheus with the rules of deploy/ that scrapes a server. It ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: PoiseServer) -> Prometheus:
        config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        config = config.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        config = config.replace("scrape_interval: 5s", "scrape_interval: 250ms")
        (tmp_path / "token").write_text(find_token(server.url))
        config = config.replace("# authorization:", "authorization:")
        config = config.replace("/etc/prometheus/poise-admin-key", str(tmp_path / "token"))
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(DEPLOY / "prometheus" / "poise-rules.yml", tmp_path)
        log, port = tmp_path / "log", _free_port()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        prometheus = Prometheus(process, log, f"http://127.0.0.1:{port}")
        prometheus.eventually(prometheus.answers, "ready")
        return prometheus

    yield start
    for process in started:
        process.terminate()
        process.wait(120)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_rules_and_the_example_are_valid() -> None:
    """As promtool says, which also has every alert fire on made-up series."""
    promtool("check", "rules", str(DEPLOY / "prometheus" / "poise-rules.yml"))
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    promtool("test", "rules", str(DEPLOY / "prometheus" / "poise-rules.test.yml"))


def test_prometheus_scrapes_a_running_server(poise_server: PoiseServer, watch: Callable[[PoiseServer], Prometheus]) -> None:
    """What was asked of the server is what Prometheus answers, and it understands every panel of the dashboard."""
    prometheus = watch(poise_server)
    body = {"model": "default", "max_tokens": 12, "messages": [{"role": "user", "content": "Say something."}]}
    request = urllib.request.Request(
        f"{poise_server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        usage = json.load(response)["usage"]
    assert usage["completion_tokens"] > 0
    status, text = poise_server.get("/metrics")
    assert status == 200
    told = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[:1] != "#"}
    for series in (
        'poise_output_tokens_total{class="interactive"}',
        'gen_ai_server_time_to_first_token_seconds_count{class="interactive"}',
        'poise_tenant_tokens_total{class="interactive",kind="output",tenant="local"}',
        "poise_engine_step_seconds_count",
    ):
        assert told[series] > 0
        prometheus.eventually(lambda series=series: (prometheus.value(series) or 0) >= told[series], series)  # type: ignore[misc]
    assert prometheus.value("sum(poise_bottleneck)") == 1
    idle = 'poise_bottleneck_seconds_total{resource="idle"}'
    before = prometheus.value(idle) or 0.0
    prometheus.eventually(lambda: (prometheus.value(idle) or 0.0) > before, "time passes at rest, too")
    for panel in json.loads((DEPLOY / "grafana" / "poise.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            prometheus.query(target["expr"].replace("$__rate_interval", "1m").replace('"$job"', '".*"').replace(
                '"$instance"', '".*"'
            ))  # fmt: skip


def test_a_server_that_is_gone_is_seen(watch: Callable[[PoiseServer], Prometheus]) -> None:
    """Its scrapes fail from then on."""
    server = PoiseServer.start()
    try:
        prometheus = watch(server)
        prometheus.eventually(lambda: prometheus.value('up{job="poise"}') == 1, "a scrape")
    finally:
        assert server.stop() == 0
    prometheus.eventually(lambda: prometheus.value('up{job="poise"}') == 0, "a failed scrape")
