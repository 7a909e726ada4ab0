"""Minutes of all attacks at once on a server that this starts, beside four polite tenants whose answers must all come.

    .venv/bin/python scripts/siege.py --minutes 15 --json siege.json
    .venv/bin/python scripts/siege.py --minutes 3 --reference-minutes 1 --seed 7 --kind silence --kind fresh_keys
    .venv/bin/python scripts/siege.py -- --set classes.interactive.queue_max=32

What follows `--` goes to `poise serve`. The polite tenants' keys are declared, so that those with a new key each time are
strangers; with `--keyless` none is, and every new key is a tenant of its own. First the four run beside a plain flood (the hog
of scenarios/flood.toml), which is the reference; then beside every kind of attack of tests/attacks/kinds, mixed by `--seed`, from
127.0.0.2 to .9, two of which are proxies that the server trusts. Each attack is bounded in count, size and time, and they run at
low priority, so that the machine is busy with the server and not with its attackers. Meanwhile the engine and the text workers
are killed a few times, and the model file gets a new time of modification. Then all is quiet, until what is kept for
`results.retention_s` (60 s here) is gone. It checks:

  polite       every request of the four was answered to its end; in a window of a kill, a new one may be told to come later
  ttft         their TTFT p95 in the siege, outside of kill windows, is at most `--ttft-ratio` times that beside the flood
  attacks      every kind was carried out, and no request hidden in another one was answered
  tasks        no task of the gateway has died, history is sampled, the level is judged, /health answers
  processes    the gateway is the one that was started, and nothing was restarted but what was killed here
  descriptors  each process has as many as before, give or take `--descriptors`
  memory       the gateway's anonymous memory has grown by at most `--growth-mib` after minute 5 (a third of a shorter siege)
  books        /status: nothing open, queued, running, paused or swapped, and no slot held
  audit        `poise audit verify` finds the chain unbroken
  exit         the server ends with status 0

Exit code 0 if all hold, 1 if one does not, 2 for what cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from siege_checks import (  # noqa: E402 - what lies beside this file and in tests/ is no package of the installation
    Figures,
    Sample,
    Window,
    apart,
    check_attacks,
    check_files,
    check_memory,
    check_polite,
    check_processes,
    check_tasks,
    check_ttft,
    figures,
)
from soak import Check, Server, check_audit, fetch, own_bytes, wait_until_clean  # noqa: E402
from tests.attacks import peer, polite  # noqa: E402
from tests.attacks.besiege import Order  # noqa: E402
from tests.attacks.kinds import KINDS  # noqa: E402
from tests.attacks.peer import Site  # noqa: E402

from poise.llama.files.default_model import default_model  # noqa: E402
from poise_lab.bench.provenance import commit, host  # noqa: E402

SIMULATED = "tests.attacks.simulated"
POLITE, HOSTILE = 4, 3
THINK_S = 0.5
SOURCES = [f"127.0.0.{n}" for n in range(2, 10)]
PROXIES = "127.0.0.8/31"
"""Of these the server believes for whom a request is forwarded; the same claims of the others make nobody of them."""
FORWARDED = [f"198.51.100.{n}" for n in range(1, 17)]
CONNECTIONS = 300
"""So few that the attackers use them up; those of the polite come in all the same."""
HOLD_S = 40.0
"""Longer than what the server allows by default for a body (20 s) and for an answer that is not taken (30 s)."""
RETENTION_S = 60
SAMPLE_S = 2.0
WARMUP_S = 10.0
READY_S_MAX = 120.0
AFTER_WINDOW_S = 2.0
"""A new engine has an empty queue in front of it and a cold cache: so much longer counts as the window."""
SHORT_MIN = 15.0
"""Minutes from which on memory is watched from minute 5; a shorter siege watches its last two thirds."""


def key_of(tenant: str) -> str:
    return f"{tenant}-secret-key"


class Siege:
    """One server, those who besiege it, those who are to notice nothing, and what was seen."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given = given
        self._folder = folder
        self.model = folder / default_model().name
        shutil.copyfile(default_model(), self.model)
        self._admin_key = secrets.token_hex(16)
        self._tenants = [f"polite{n}" for n in range(POLITE)]
        self._hostile = [f"hostile{n}" for n in range(HOSTILE)]
        self._stopping = asyncio.Event()
        self._began_s = 0.0
        self.asked: dict[str, list[polite.Asked]] = {}
        self.windows: list[Window] = []
        self.kills: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.outcomes: dict[str, dict[str, int]] = {}
        self.health_ms: list[float] = []
        self.levels: list[str] = []
        self.slowest = (0.0, "")
        """The longest wait for a first token in the siege, and the server's explanation of it."""
        self.at_rest: dict[str, Any] = {}
        self._last_level = ""

    def options(self) -> list[str]:
        """Of `poise serve`."""
        sets = {
            "auth.required": "false",
            "auth.admin_key": self._admin_key,
            "server.connections_total": str(CONNECTIONS),
            "server.trusted_proxies": PROXIES,
            "results.retention_s": str(RETENTION_S),
            "audit.enabled": "true",
            "audit.path": str(self._folder / "audit"),
        }
        if not self._given.keyless:
            sets |= {f"auth.keys.{tenant}": key_of(tenant) for tenant in [*self._tenants, *self._hostile]}
        pairs = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
        return ["--model", str(self.model), *pairs, *self._given.serve]

    async def run(self, server: Server, url: str) -> None:
        """All phases, one after the other."""
        self._server, self._url, self._port = server, url, int(url.rpartition(":")[2])
        await self._until_healthy()
        reference_s, siege_s = self._given.reference_minutes * 60, self._given.minutes * 60
        watching = asyncio.create_task(self._watch())
        await self._phase("warm-up", ["flood"], WARMUP_S)
        await self._phase("reference", ["flood"], reference_s)
        self._began_s = time.monotonic()
        killing = asyncio.create_task(self._kill(siege_s))
        await self._phase("siege", self._given.kind, siege_s)
        killing.cancel()
        print(f"quiet for {RETENTION_S + SAMPLE_S:g} s, until what is kept is gone", flush=True)
        await asyncio.sleep(RETENTION_S + SAMPLE_S)
        self._stopping.set()
        await watching
        self.samples = [replace(sample, at_s=sample.at_s - self._began_s) for sample in self.samples]

    async def _phase(self, name: str, kinds: Sequence[str], seconds: float) -> None:
        print(f"{name}: {seconds:g} s", flush=True)
        order = Order(
            self._port, seconds, self._given.seed, list(kinds), self._given.intensity, SOURCES, FORWARDED,
            keys=[key_of(tenant) for tenant in self._hostile], admin_key=self._admin_key, hold_s=HOLD_S,
        )  # fmt: skip
        attackers = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.attacks.besiege", cwd=ROOT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert attackers.stdin is not None
        assert attackers.stdout is not None
        attackers.stdin.write(order.json().encode() + b"\n")
        until_s = time.monotonic() + seconds
        self.asked[name] = []
        await asyncio.gather(*(self._play_fair(tenant, name, until_s) for tenant in self._tenants))
        try:
            output = await asyncio.wait_for(attackers.stdout.read(), 4 * HOLD_S + 60)
            self.outcomes = json.loads(output)
        finally:
            attackers.stdin.close()
            await attackers.wait()

    async def _play_fair(self, tenant: str, phase: str, until_s: float) -> None:
        rng = random.Random(f"{self._given.seed}/{tenant}/{phase}")  # noqa: S311 - a workload, not a secret
        site = Site(self._port, rng=rng)
        while time.monotonic() < until_s:
            asked = await polite.ask(site, key_of(tenant))
            self.asked[phase].append(asked)
            if asked.status == polite.OK and asked.ttft_s > self.slowest[0] and phase == "siege":
                self.slowest = (asked.ttft_s, "")
                why = site.get(f"/v1/requests/{asked.response}/explanation", key=key_of(tenant))
                self.slowest = (asked.ttft_s, await peer.fetched(site, why))
            await asyncio.sleep(rng.uniform(0.5, 1.5) * THINK_S)

    async def _kill(self, seconds: float) -> None:
        """Engines and text workers in turn, at moments that the seed says, far enough from each other and from the ends."""
        rng = random.Random(self._given.seed)  # noqa: S311
        plan = ["engine"] * self._given.kills + ["text"] * self._given.text_kills
        rng.shuffle(plan)
        for number, what in enumerate(plan):
            at_s = (number + rng.uniform(0.4, 0.9)) / (len(plan) + 1) * seconds
            await asyncio.sleep(max(0.0, self._began_s + at_s - time.monotonic()))
            if number == len(plan) // 2:
                os.utime(self.model)
                print("touched the model file", flush=True)
            await self._kill_one(what)

    async def _kill_one(self, what: str) -> None:
        victim = next((p for name, p in self._processes() if name == what), None)
        if victim is None:
            print(f"there is no process {what!r} to kill", flush=True)
            return
        from_s = time.monotonic()
        victim.kill()
        self.kills[what] += 1
        await self._until_healthy(what, victim.pid)
        window = Window(what, from_s, time.monotonic() + AFTER_WINDOW_S)
        self.windows.append(window)
        print(f"killed {what} {victim.pid}: itself again after {window.to_s - AFTER_WINDOW_S - from_s:.1f} s", flush=True)

    async def _until_healthy(self, role: str = "gateway", not_pid: int = 0) -> None:
        """Until /health is ok and a process of that role is there, which is not the one that has been killed."""
        limit_s = time.monotonic() + READY_S_MAX
        while time.monotonic() < limit_s:
            await asyncio.sleep(0.25)
            if any(name == role and p.pid != not_pid for name, p in self._processes()) and (await self._health())[0] == "ok":
                return

    async def _watch(self) -> None:
        """Samples of all processes, the time of /health, and the level."""
        while True:
            health, took_s = await self._health()
            self.health_ms.append(took_s * 1000)
            if health == "ok" and (level := self._last_level) not in self.levels[-1:]:
                self.levels.append(level)
            at_s = time.monotonic()
            for name, process in self._processes():
                try:
                    rss = process.memory_info().rss
                    self.samples.append(Sample(at_s, name, process.pid, own_bytes(process.pid, rss), process.num_fds()))
                except psutil.Error:
                    continue  # It has just been killed.
            if self._stopping.is_set():
                return
            await asyncio.sleep(SAMPLE_S)

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        """The gateway and its children: "engine", "text", or what else they are called."""
        found = []
        try:
            gateway = psutil.Process(self._server.process.pid)
            found.append(("gateway", gateway))
            children = [(_role(child.cmdline()), child) for child in gateway.children()]
            found += [(role, child) for role, child in children if role]  # without: one that is just being started
        except psutil.Error:
            pass
        return found

    async def _health(self) -> tuple[str, float]:
        """What /health says, and how long that took. Asked in a thread: whoever waits here must not hold the polite ones up."""
        began_s = time.monotonic()
        try:
            body = json.loads(await asyncio.to_thread(fetch_any, f"{self._url}/health"))
        except (OSError, ValueError) as error:
            return f"no answer: {error}", time.monotonic() - began_s
        self._last_level = body["level"]
        return str(body["status"]), time.monotonic() - began_s

    def checks(self, code: int | None) -> list[Check]:
        """After the server has ended with `code`. What was asked of it while it ran is in `at_rest`."""
        outside, inside = apart(self.asked["siege"], self.windows)
        minutes = self._given.minutes
        warm_s = 300.0 if minutes >= SHORT_MIN else minutes * 60 / 3
        reference, siege = self.figures()["reference"], self.figures()["siege"]
        rest = self.at_rest
        return [
            check_polite([*self.asked["reference"], *outside], inside),
            check_ttft(reference, siege, self._given.ttft_ratio),
            check_attacks(self.outcomes),
            check_tasks(rest["status"], rest["history_age_s"], len(self.levels) - 1, rest["health"], self.kills["engine"]),
            check_processes(self.samples, rest["status"]["restarts"], self.kills, rest["ended"], rest["text_deaths"]),
            check_files(self.samples, self._given.descriptors),
            check_memory(self.samples, warm_s, minutes * 60, self._given.growth_mib),
            rest["books"],
            check_audit(self._folder / "audit") or Check("audit", False, "no audit log"),
            Check("exit", code == 0, f"status {code}"),
        ]

    def look(self) -> None:
        """What the server says of itself when all is quiet."""
        books = wait_until_clean(self._url)
        history = json.loads(fetch_any(f"{self._url}/status/history"))
        self.at_rest = {
            "books": books,
            "status": json.loads(fetch_any(f"{self._url}/status")),
            "health": json.loads(fetch_any(f"{self._url}/health"))["status"],
            "text_deaths": text_deaths(fetch(f"{self._url}/metrics").decode()),
            "history_age_s": time.time() - history["samples"][-1]["at"] if history["samples"] else float("inf"),
            "ended": self._server.process.poll(),
        }

    def figures(self) -> dict[str, Figures]:
        outside, inside = apart(self.asked["siege"], self.windows)
        return {"reference": figures(self.asked["reference"]), "siege": figures(outside), "siege, at kills": figures(inside)}

    def summary(self, checks: Sequence[Check], passed: bool) -> dict[str, Any]:
        """Everything, for JSON."""
        given = self._given
        return {
            "passed": passed, "checks": [asdict(check) for check in checks], "seed": given.seed, "minutes": given.minutes,
            "keyless": given.keyless, "simulated": given.simulated,
            "reference_minutes": given.reference_minutes, "intensity": given.intensity, "serve": given.serve,
            "host": host(), "commit": commit(), "figures": {name: asdict(f) for name, f in self.figures().items()},
            "slowest": self.slowest,
            "outcomes": self.outcomes, "levels": self.levels, "windows": [asdict(window) for window in self.windows],
            "samples": [asdict(sample) for sample in self.samples], "health_ms": self.health_ms,
            "statuses": {phase: Counter(a.status for a in asked) for phase, asked in self.asked.items()},
        }  # fmt: skip

    def print_tables(self) -> None:
        print(f"\n{'polite tenants, ms':<18} {'answered':>8} {'TTFT p50':>9} {'p95':>7} {'max':>7} {'gap p95':>8} {'max':>7}")
        for name, f in self.figures().items():
            row = f"{f.ttft_p50:>9.0f} {f.ttft_p95:>7.0f} {f.ttft_max:>7.0f} {f.gap_p95:>8.0f} {f.gap_max:>7.0f}"
            print(f"{name:<18} {f.n:>8} {row}")
        print(f"\nthe slowest first token, {self.slowest[0]:.1f} s: {' '.join(said(self.slowest[1]))}")
        print(f"/health: p50 {statistics.median(self.health_ms):.0f} ms, max {max(self.health_ms):.0f} ms")
        print(f"levels: {' '.join(self.levels)}")
        print(f"\n{'process':<10} {'own MiB: first':>15} {'most':>7} {'last':>7} {'files: first':>13} {'most':>5} {'last':>5}")
        for name in dict.fromkeys(s.process for s in self.samples):
            own = [s for s in self.samples if s.process == name]
            mib, files = [s.own_bytes / 2**20 for s in own], [s.n_files for s in own]
            print(f"{name:<10} {mib[0]:>15.1f} {max(mib):>7.1f} {mib[-1]:>7.1f} {files[0]:>13} {max(files):>5} {files[-1]:>5}")
        print(f"\n{'attack':<24} {'strikes':>7}  what came of them")
        for name, found in self.outcomes.items():
            told = ", ".join(f"{n} {what}" for what, n in sorted(found.items(), key=lambda item: -item[1])[:5])
            print(f"{name:<24} {sum(found.values()):>7}  {told}")


def said(explanation: str) -> list[str]:
    """The sentences of an explanation."""
    try:
        return [str(sentence) for sentence in json.loads(explanation)["sentences"]]
    except (ValueError, KeyError, TypeError):
        return [explanation]


def text_deaths(exposition: str) -> dict[str, int]:
    """Of text workers, by cause, from /metrics."""
    found = re.findall(r'^poise_text_worker_deaths_total\{cause="(\w+)"\} ([\d.]+)', exposition, re.MULTILINE)
    return {cause: int(float(n)) for cause, n in found if float(n)}


def _role(command: Sequence[str]) -> str:
    """What a child of the gateway is: by the module that it runs."""
    module = next((part for part in command if part.startswith(("poise.", "tests.gateway."))), "")
    return next((role for role in ("engine", "text") if role in module), module)


def fetch_any(url: str) -> bytes:
    """The body, whatever the status."""
    try:
        return fetch(url)
    except urllib.error.HTTPError as error:
        with error:
            return error.read()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="of the siege")
    parser.add_argument("--reference-minutes", type=float, default=3.0, help="of the plain flood before it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", default=[], choices=sorted(KINDS), help="only this kind, and others named so")
    parser.add_argument("--simulated", action="store_true", help="an engine without a model, to see the gateway's part alone")
    parser.add_argument("--keyless", action="store_true", help="no key is declared: each new one is a tenant")
    parser.add_argument("--intensity", type=float, default=1.0, help="share of each kind's rate and number")
    parser.add_argument("--kills", type=int, default=3, help="of the engine")
    parser.add_argument("--text-kills", type=int, default=3, help="of a text worker")
    parser.add_argument("--ttft-ratio", type=float, default=3.0)
    parser.add_argument("--growth-mib", type=float, default=8.0)
    parser.add_argument("--descriptors", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("serve", nargs="*", help="options of poise serve, after --")
    given = parser.parse_args()
    ranges = {
        "minutes": (0.2, 10_000), "reference_minutes": (0.1, 1_000), "intensity": (0.01, 4), "kills": (0, 100),
        "text_kills": (0, 100),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        if not low <= getattr(given, name) <= high:
            parser.error(f"--{name.replace('_', '-')} {getattr(given, name)}: expected {low} to {high}")
    return given


def main() -> int:
    given = options()
    folder = Path(tempfile.mkdtemp(prefix="poise-siege-"))
    print(f"seed {given.seed}; log and audit log in {folder}", flush=True)
    # The server's, and those of `poise audit`; the simulated engine is found in tests/.
    os.environ |= {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    try:
        with (folder / "serve.log").open("w", encoding="utf-8") as log:
            siege = Siege(given, folder)
            server = Server(siege.options(), log, SIMULATED if given.simulated else "poise")
            try:
                asyncio.run(siege.run(server, server.wait_for_url()))
                siege.look()
            finally:
                code = server.stop()
        checks = siege.checks(code)
    finally:
        (folder / default_model().name).unlink(missing_ok=True)
    siege.print_tables()
    print()
    for check in checks:
        print(f"{'ok    ' if check.ok else 'FAILED'} {check.name}: {check.detail}")
    passed = all(check.ok for check in checks)
    print("passed" if passed else "FAILED")
    if given.json is not None:
        given.json.write_text(json.dumps(siege.summary(checks, passed)), encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
