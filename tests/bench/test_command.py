"""`poise bench` as a whole: alternation, readiness, tables, the JSON file, and one clear line for what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner, Result

from poise_lab.bench.command import bench
from poise_lab.bench.rounds import OURS, THEIRS, Benchmark, RunOptions, ScenarioSource
from poise_lab.bench.target import TargetError
from poise_lab.scenarios.parser import find_scenario, parse_scenario

TEXT = """
name = "tiny"
description = "For tests."
duration_s = 60.0
drain_s = 1.0
warmup_requests = 1

[[clients]]
name = "chat"
tenant = "alice"
class = "interactive"
requests = 2
arrival = { kind = "closed" }
prompt_tokens = 5
output_tokens = 2

[[clients]]
name = "writer"
tenant = "bob"
class = "background"
requests = 1
arrival = { kind = "closed" }
prompt_tokens = 5
output_tokens = 2
"""
ANSWER = b"".join(
    [
        b'data: {"choices":[{"delta":{"content":" a"}}]}\n\n' * 2,
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
        b"data: [DONE]\n\n",
    ]
)


class Servers:
    """Servers that share one journal of what they were asked."""

    def __init__(self) -> None:
        self.journal: list[tuple[str, str]] = []
        self.prompts: dict[str, list[str]] = {}
        self.status = 200
        self.keys: set[str] = set()

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[str]:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.journal.append((name, request.path))
            self.keys.add(request.headers.get("Authorization", ""))
            if request.path == "/v1/models":
                return web.json_response({"data": [{"id": f"{name}-model"}]})
            if request.path == "/health":
                return web.Response()
            if request.path == "/status":
                return web.json_response({"phase": "ready"})
            if request.method == "GET":
                return web.Response(status=404)
            body = json.loads(await request.read())
            self.prompts.setdefault(name, []).append(body["messages"][1]["content"])
            if self.status != 200:
                return web.Response(status=self.status)
            return web.Response(body=ANSWER, content_type="text/event-stream")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def options(urls: dict[str, str], n_rounds: int) -> RunOptions:
    source = ScenarioSource(parse_scenario(TEXT, "tiny.toml"), "tiny.toml", TEXT)
    extensions = {OURS: True, THEIRS: False}
    return RunOptions((source,), urls, extensions, n_rounds, seed=5, text_seed=6, pause_s=0.0, ready_timeout_s=5.0)


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, list(arguments))


def check_refused(message: str, *arguments: str, exit_code: int = 2) -> None:
    """The arguments end in one line on stderr."""
    result = invoke(*arguments)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


async def test_rounds_alternate() -> None:
    """Both sides get the same prompts in a round, the first one changes, and each is asked whether it is ready."""
    servers = Servers()
    ticks: list[tuple[str, int]] = []

    def on_tick(_name: str, side: str, number: int, _elapsed_s: float, ended: bool) -> None:
        if ended:
            ticks.append((side, number))

    async with servers.running(OURS) as ours, servers.running(THEIRS) as theirs:
        benchmark = Benchmark(options({OURS: ours, THEIRS: theirs}, 3), on_tick)
        await benchmark.run()
    assert benchmark.complete
    assert ticks == [(OURS, 0), (THEIRS, 0), (THEIRS, 1), (OURS, 1), (OURS, 2), (THEIRS, 2)]
    rounds = benchmark.runs[0].rounds
    assert [list(finished.results) for finished in rounds] == [[OURS, THEIRS], [THEIRS, OURS], [OURS, THEIRS]]
    assert [finished.seed for finished in rounds] == [5, 6, 7]
    assert sorted(servers.prompts[OURS]) == sorted(servers.prompts[THEIRS])
    assert len(set(servers.prompts[OURS])) == 3 * 4
    assert servers.journal.count((OURS, "/health")) == 5  # The probe, the first wait, one wait for each turn.


async def test_interruption_keeps_finished_rounds() -> None:
    """What Ctrl-C does to the run: the round it hits is dropped, those before it stay."""
    servers = Servers()
    second = asyncio.Event()

    def on_tick(_name: str, _side: str, number: int, _elapsed_s: float, _ended: bool) -> None:
        if number == 1:
            second.set()

    async with servers.running(OURS) as ours:
        benchmark = Benchmark(options({OURS: ours}, 1000), on_tick)
        task = asyncio.create_task(benchmark.run())
        await second.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not benchmark.complete
    assert [finished.number for finished in benchmark.runs[0].rounds][:1] == [0]


async def test_absent_server_is_an_error_at_once() -> None:
    """Without anybody at the address there is no wait."""
    with pytest.raises(TargetError, match="cannot be reached"):
        await Benchmark(options({OURS: "http://127.0.0.1:9"}, 1), lambda *_: None).run()


async def test_command_compares_two_servers(tmp_path: Path) -> None:
    """The tables go to stdout and the JSON file has every figure of every round."""
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    found = tmp_path / "found.json"
    servers = Servers()
    async with servers.running(OURS) as ours, servers.running(THEIRS) as theirs:
        arguments = [str(tmp_path / "tiny.toml"), "--url", ours, "--against", theirs + "/v1", "--rounds", "2"]
        arguments += ["--pause", "0", "--json", str(found), "--seed", "3", "--text-seed", "4", "--no-max-tokens"]
        result = await asyncio.to_thread(invoke, *arguments)
    assert result.exit_code == 0, result.output
    for text in ("tiny · 2 round(s) from seed 3", "ours-model", "theirs p95", "ratio p99", "chat (interactive)", "TTFT ms"):
        assert text in result.stdout
    check_json(json.loads(found.read_bytes()), theirs)


def check_json(value: dict[str, Any], theirs: str) -> None:
    assert (value["complete"], value["options"]["seed"], value["options"]["text_seed"]) == (True, 3, 4)
    assert value["options"]["max_tokens"] is False
    assert value["host"]["n_cpus"] >= 1
    assert value["targets"]["theirs"]["url"] == theirs
    (run,) = value["scenarios"]
    assert run["text"] == TEXT
    assert [finished["order"] for finished in run["rounds"]] == [["ours", "theirs"], ["theirs", "ours"]]
    side = run["rounds"][0]["sides"]["ours"]
    assert [request["status"] for request in side["requests"]] == ["ok"] * 3
    assert all(len(request["chunks_ms"]) == 2 for request in side["requests"])
    kinds = [(group["kind"], group["name"]) for group in side["groups"]]
    assert kinds[:3] == [("all", ""), ("class", "interactive"), ("class", "background")]
    assert side["groups"][0]["statuses"] == {"ok": 3}
    assert run["medians"]["theirs"][0]["statuses"] == {"ok": 6}
    assert run["ratios"][0]["figures"]["ttft_ms_p50"]["rounds"] == 2
    assert run["medians"]["ours"][0]["figures"]["output_tokens_p50"] == {"value": 2.0, "bound": ""}


async def test_one_key_for_a_server_that_wants_one(tmp_path: Path) -> None:
    """With `--key` nothing is asked without it, and no client brings one of its own."""
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    servers = Servers()
    async with servers.running(OURS) as ours:
        result = await asyncio.to_thread(invoke, str(tmp_path / "tiny.toml"), "--url", ours, "--key", "secret")
    assert result.exit_code == 0, result.output
    assert servers.keys == {"Bearer secret"}


async def test_a_server_that_answers_nothing_fails_the_run(tmp_path: Path) -> None:
    """Refusals are in the table, and a round without a single token is exit code 1."""
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    servers = Servers()
    servers.status = 500
    async with servers.running(OURS) as ours:
        result = await asyncio.to_thread(invoke, str(tmp_path / "tiny.toml"), "--url", ours)
    assert result.exit_code == 1
    assert "error:500/unknown" in result.stdout
    assert "no token at all" in result.stderr
    assert "not every warm-up request succeeded" in result.stderr


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is one line, before any load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "tiny.toml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "bad.toml").write_text(TEXT.replace("requests = 2", "requests = 0"), encoding="utf-8")
    check_refused("no scenario 'nope'", "nope")
    check_refused("where there are: tiny", "nope")
    check_refused("bad.toml: clients[0].requests = 0: expected an integer from 1", "bad.toml")
    check_refused("--rounds 0: expected 1 to 1000", "tiny", "--rounds", "0")
    check_refused("--pause -1.0: expected 0 to 3600", "tiny", "--pause", "-1")
    check_refused("--seed -1", "tiny", "--seed", "-1")
    check_refused("'localhost:1' is not a server address", "tiny", "--url", "localhost:1")
    check_refused("the same server", "tiny", "--url", "http://h:1", "--against", "http://h:1/v1/")
    check_refused("--json absent/x.json: cannot be written", "tiny", "--json", "absent/x.json")
    check_refused("http://127.0.0.1:9 cannot be reached", "tiny", "--url", "http://127.0.0.1:9")


def test_the_document_is_complete() -> None:
    """docs/benchmark.md names every option, every shipped scenario and every measure."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "benchmark.md").read_text(encoding="utf-8")
    app = typer.Typer(add_completion=False)
    app.command()(bench)
    options = [option for parameter in typer.main.get_command(app).params for option in parameter.opts]
    named = [option for option in options if option.startswith("--")]
    assert len(named) == 16
    named += [f"`{path.stem}`" for path in (root / "scenarios").glob("*.toml")]
    named += ["TTFT", "| gap |", "longest gap", "end to end", "output tokens/s", "prompt tokens/s", "tokens/s per stream"]
    assert [name for name in named if name not in text] == []


def test_scenarios_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name means ./scenarios/<name>.toml; a file of that very name comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "tiny.toml").write_text(TEXT, encoding="utf-8")
    assert find_scenario("tiny") == Path("scenarios/tiny.toml")
    (tmp_path / "tiny").write_text(TEXT, encoding="utf-8")
    assert find_scenario("tiny") == Path("tiny")
