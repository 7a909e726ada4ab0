"""A real server and its text worker: what is in whose memory, and what a stream notices of a worker's death."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from poise.gateway.supervision.supervisor import ENGINE_COMMAND
from poise.gateway.text.process import WORKER_COMMAND
from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

ENGINE, WORKER = ENGINE_COMMAND[-1], WORKER_COMMAND[-1]


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    server = PoiseServer.start("--set", "text.workers=1")
    yield server
    assert server.stop() == 0


def libraries(pid: int) -> set[str]:
    """Names of files of llama.cpp that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if "libllama" in line or "libggml" in line}


def post(server: PoiseServer, path: str, **body: Any) -> Any:
    data = json.dumps({"model": "default", **body}).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=120)


def chat(server: PoiseServer, content: str, **body: Any) -> Any:
    return post(server, "/v1/chat/completions", messages=[{"role": "user", "content": content}], **body)


def test_the_gateway_has_no_llama_code_in_its_memory(server: PoiseServer) -> None:
    """Nor after a request; the engine and the worker have, and the engine was started first."""
    with chat(server, "Hi", max_tokens=2) as response:
        assert response.status == 200
    assert libraries(server.process.pid) == set()
    engine, worker = server.child(ENGINE), server.child(WORKER)
    assert libraries(engine.pid)
    assert libraries(worker.pid)
    assert engine.create_time() <= worker.create_time()


def test_a_stream_does_not_notice_that_its_worker_dies(server: PoiseServer) -> None:
    """It comes to its end, the next request is answered by another worker, and everybody can see what happened."""
    texts: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with chat(server, "Count from one to a hundred.", max_tokens=200, stream=True, temperature=0) as response:
            for line in response:
                texts.append(line.decode())
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(120)
    worker = server.child(WORKER)
    worker.kill()
    with chat(server, "And now?", max_tokens=2) as response:
        assert response.status == 200
    reader.join(120)
    assert texts[-2].strip() == "data: [DONE]"
    assert not any('"error"' in text for text in texts)
    assert server.child(WORKER).pid != worker.pid
    (row,) = server.get("/status")[1]["text"]["workers"]
    assert (row["state"], row["restarts"]) == ("ready", 1)
    assert server.child(ENGINE).is_running()


def test_the_worker_ends_with_its_gateway() -> None:
    """Also when that one is killed."""
    server = PoiseServer.start("--set", "text.workers=1")
    children = [server.child(module) for module in (ENGINE, WORKER)]
    server.process.kill()
    server.stop()
    gone, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, gone
