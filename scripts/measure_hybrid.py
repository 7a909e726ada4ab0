"""Measure what hybrid is for: chats keep their pace on a host that is asked for twice what it can do, because heavy work leaves.

    .venv/bin/python scripts/measure_hybrid.py [--rounds 5] [--seed 1] [--seconds 60] [--capacity 1.0]

One poise with its own engine, and a scripted server as its cloud: the first token after 500 ms, then one each 20 ms. Three
kinds of rounds take turns: chats alone; chats beside readers and writers who may leave, all of it together twice what this host
can do; the same load where nothing may leave. Printed are the chats' TTFT in each, the ratios of each round and of all rounds
together, how many requests left, and whether the audit log, the cloud and the client tell one story.

`--capacity`: how much quicker this host is than one that computes 150 prompt tokens a second; the load is in proportion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

from poise.operator_token import find_token

FIRST_S, GAP_S, HEAVY_WAIT_S, PORT = 0.5, 0.02, 1.0, 9371
URL = f"http://127.0.0.1:{PORT}"
CHATS = """
[[clients]]
name = "chat"
tenant = "conversations"
class = "interactive"
arrival = {{ kind = "poisson", rate_per_s = {chats} }}
prompt_tokens = {{ kind = "lognormal", median = 60, sigma = 0.4, low = 30, high = 160 }}
output_tokens = {{ kind = "lognormal", median = 36, sigma = 0.5, low = 8, high = 120 }}
"""
HEAVY = """
[[clients]]
name = "reader"
tenant = "long-documents"
class = "interactive"
arrival = {{ kind = "poisson", rate_per_s = {readers} }}
prompt_tokens = 3000
output_tokens = 64

[[clients]]
name = "writer"
tenant = "long-documents"
class = "background"
arrival = {{ kind = "poisson", rate_per_s = {writers} }}
prompt_tokens = 1500
output_tokens = 300
"""
HEAD = 'name = "{name}"\ndescription = "measure_hybrid"\nduration_s = {seconds}\ndrain_s = 5.0\nwarmup_requests = 1\n'


class Cloud(threading.Thread):
    """The scripted server. `n_asked`: requests with a text in them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.n_asked, self.port = 0, 0
        self.ready = threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self.ready.set()
        await asyncio.Event().wait()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted", "max_model_len": 100_000}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.n_asked += 1
        wanted = (await request.json())["max_tokens"]
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for i in range(wanted):
            await asyncio.sleep(FIRST_S if i == 0 else GAP_S)
            choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": "length" if i == wanted - 1 else None}
            await answer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        usage = {"prompt_tokens": 100, "completion_tokens": wanted}
        await answer.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return answer


def tenant(name: str) -> str:
    """As the server calls whoever comes with the benchmark's key of that name, where no keys are declared."""
    return f"key-{sha256(f'bench-{name}'.encode()).hexdigest()[:12]}"


def settings(cloud: Cloud, folder: Path) -> str:
    return f"""
profile = "hybrid"
[server]
port = {PORT}
[audit]
path = "{folder / "audit"}"
[egress]
heavy_wait_s = {HEAVY_WAIT_S}
[backends.cloud]
url = "http://127.0.0.1:{cloud.port}/v1"
leaves_host = true
slots = 64
[tenants.{tenant("conversations")}]
egress = "never"
[tenants.{tenant("long-documents")}]
egress = "allowed"
"""


def operate(path: str, method: str = "POST") -> Any:
    headers = {"Authorization": f"Bearer {find_token(URL)}"}
    request = urllib.request.Request(URL + path, headers=headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.loads(answer.read())


class Round:
    """The chats' TTFT in ms (of one that had no token yet, how long it had waited), and how the others ended."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        chats = [one for one in requests if one["client"] == "chat" and one["status"] in ("ok", "unfinished")]
        self.n_failed = sum(one["status"] not in ("ok", "unfinished") for one in requests)
        self.ttft_ms = sorted(one["chunks_ms"][0] if one["chunks_ms"] else one["end_ms"] for one in chats)
        self.n_heavy = sum(one["client"] != "chat" and one["status"] == "ok" for one in requests)


def measured(folder: Path, name: str, seed: int) -> Round:
    found, scenario = folder / "round.json", folder / ("calm.toml" if name == "calm" else "loaded.toml")
    command = [sys.executable, "-m", "poise", "bench", str(scenario), "--url", URL, "--seed", str(seed), "--json", str(found)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    return Round(json.loads(found.read_text())["scenarios"][0]["rounds"][0]["sides"]["ours"]["requests"])


def p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def left(folder: Path) -> tuple[int, set[str]]:
    """Answers that were asked for elsewhere, by the audit log, and whose."""
    lines = [json.loads(line) for file in (folder / "audit").glob("*.jsonl") for line in file.read_text().splitlines()]
    sent = [line for line in lines if line["event"] == "egress" and line["purpose"] == "answer"]
    return len(sent), {line["tenant"] for line in sent}


def rounds(options: argparse.Namespace, folder: Path) -> None:
    found: dict[str, list[Round]] = {"calm": [], "leaves": [], "stays": []}
    for i in range(options.rounds):
        for name, those in found.items():
            operate(f"/admin/egress/{'close' if name == 'stays' else 'open'}")
            those.append(one := measured(folder, name, options.seed + i))
            shown = f"p50 {statistics.median(one.ttft_ms):.0f}, p95 {p95(one.ttft_ms):.0f} ms of {len(one.ttft_ms)}"
            print(f"round {i + 1}, {name}: chats' TTFT {shown}; {one.n_heavy} others done, {one.n_failed} failed", flush=True)
    for name in ("leaves", "stays"):
        pairs = zip(found[name], found["calm"], strict=True)
        ratios = [p95(loaded.ttft_ms) / p95(calm.ttft_ms) for loaded, calm in pairs]
        pooled = [p95([ms for one in found[kind] for ms in one.ttft_ms]) for kind in (name, "calm")]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} / calm, TTFT p95: {shown}; all rounds {pooled[0]:.0f} / {pooled[1]:.0f} = {pooled[0] / pooled[1]:.2f}")


def scenarios(options: argparse.Namespace, folder: Path) -> None:
    """On a host of capacity 1 a chat takes 1.2 s, a reader 24 s, a writer 16 s: a fifth of its time, and nine fifths."""
    pace = options.capacity
    load = CHATS.format(chats=0.17 * pace), HEAVY.format(readers=0.05 * pace, writers=0.04 * pace)
    for name, clients in (("calm", load[0]), ("loaded", "".join(load))):
        (folder / f"{name}.toml").write_text(HEAD.format(name=name, seconds=float(options.seconds)) + clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--capacity", type=float, default=1.0)
    options = parser.parse_args()
    folder, cloud = Path(tempfile.mkdtemp()), Cloud()
    cloud.start()
    cloud.ready.wait()
    scenarios(options, folder)
    (folder / "poise.toml").write_text(settings(cloud, folder))
    command = [sys.executable, "-m", "poise", "serve", "--config", str(folder / "poise.toml")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        while True:
            try:
                operate("/health", "GET")
                break
            except OSError:
                time.sleep(0.5)
        rounds(options, folder)
        n_left, tenants = left(folder)
        only = "only of those that may" if tenants == {tenant("long-documents")} else f"of {sorted(tenants)}"
        print(f"{n_left} left by the audit log, {only}; {cloud.n_asked} came to the cloud")
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
