"""Minutes of mixed load on a server that this starts: clients that leave, read slowly or send nonsense, and engines that die.

    .venv/bin/python scripts/soak.py --minutes 30 --kills 5 --json soak.json
    .venv/bin/python scripts/soak.py --audit /tmp/audit -- --set audit.enabled=true --set audit.path=/tmp/audit
    .venv/bin/python scripts/soak.py --minutes 1 --kills 0 -- --profile team --set scheduler.turn_ms=500
    .venv/bin/python scripts/soak.py --minutes 30 --kills 5 --siege

What follows `--` goes to `poise serve`. With `--siege` every kind of attack of tests/attacks/kinds is at work as well, at a
tenth of the rate of `siege.py`; the server then counts their requests, too. A kill is a SIGKILL of the engine process at a random
moment of the first half: in the second, the last engine's memory is watched. Afterwards it checks:

  ends    every request that was sent has ended, once: none is still open here or there, and the server's counts agree
  errors  no client saw an error, besides the allowed ones (`--allow`, a prefix of a status as `poise bench` prints it)
  memory  the gateway's and the engine's anonymous memory did not grow after the warm-up: the slope of a line through the samples,
          times the time they cover, is at most `--growth-mib`, or `--growth-mib-per-min` times the minutes if that is more. What
          the host store keeps is taken off the engine's: it has a budget of its own. The gateway keeps results for
          `results.retention_s`, ten minutes by default: a run whose warm-up is shorter has to allow for it
  books   /status: nothing open, queued, running, paused or swapped, and no slot held
  audit   `poise audit verify` finds the chain unbroken, where `--audit FOLDER` names what `audit.path` was set to
  exit    the server ends with status 0

Exit code 0 if all hold, 1 if one does not, 2 for what cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.attacks.besiege import Order  # noqa: E402

from poise_lab.bench.load import RoundLoad, RoundResult  # noqa: E402
from poise_lab.bench.provenance import commit, host  # noqa: E402
from poise_lab.bench.record import CANCELLED, OK, PENDING, REFUSED, UNFINISHED  # noqa: E402
from poise_lab.bench.target import EngineKiller, discover, new_session, wait_ready  # noqa: E402
from poise_lab.scenarios.files import InputError  # noqa: E402
from poise_lab.scenarios.model import Event, Scenario  # noqa: E402
from poise_lab.scenarios.parser import load_scenario  # noqa: E402

SIEGE_INTENSITY = 0.1
START_S_MAX = 300.0
CLEAN_S_MAX = 60.0
SAMPLES_MIN = 8
ALLOWED = ("error:429/", "error:200/reader_timeout")
ALLOWED_WITH_KILLS = ("error:503/",)
"""While an engine starts again, a new request may be told to come later; one that was accepted must not be lost."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Sample:
    """Bytes of one process at one moment, and how many of them are the host store's entries.

    rss_bytes  what is resident
    own_bytes  what is its own: anonymous pages, here or in swap. Pages of files, as the model's, come and go as the system likes
    """

    at_s: float
    process: str
    pid: int
    rss_bytes: int
    own_bytes: int
    store_bytes: int = 0

    @property
    def mib(self) -> float:
        return (self.own_bytes - self.store_bytes) / 2**20


class Server:
    """`poise serve` on a free port, its output in a file."""

    def __init__(self, options: Sequence[str], log: IO[str], module: str = "poise") -> None:
        """`module` stands in for `poise`."""
        self._log = log
        command = [sys.executable, "-m", module, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)  # noqa: S603

    def wait_for_url(self) -> str:
        until = time.monotonic() + START_S_MAX
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", Path(self._log.name).read_text(encoding="utf-8")):
                return found[0]
            time.sleep(0.1)
        raise SystemExit(f"the server did not start; its output is in {self._log.name}")

    def engine(self) -> psutil.Process | None:
        """The engine process, if there is one just now."""
        try:
            children = psutil.Process(self.process.pid).children()
            return next((c for c in children if any("engine" in part for part in c.cmdline()[1:3])), None)
        except psutil.Error:
            return None

    def sample(self, at_s: float, url: str) -> list[Sample]:
        found = []
        stored = {"engine": store_bytes(url)}
        for name, process in (("gateway", psutil.Process(self.process.pid)), ("engine", self.engine())):
            try:
                if process is not None:
                    rss = process.memory_info().rss
                    found.append(Sample(at_s, name, process.pid, rss, own_bytes(process.pid, rss), stored.get(name, 0)))
            except psutil.Error:
                continue  # It has just been killed.
        return found

    def stop(self) -> int | None:
        """Interrupts it as an operator would; its exit status, None if it had to be killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def check_ends(
    result: RoundResult, requests_before: Mapping[str, float], requests_after: Mapping[str, float], *, others: bool = False
) -> Check:
    """Nothing is open, and the server has counted every accepted request once. `others`: it has counted those of others, too."""
    open_here = [r for r in result.records if r.status in (PENDING, UNFINISHED)]
    counted = sum(requests_after.values()) - sum(requests_before.values())
    statuses = [*(r.status for r in result.records), *result.warmup_statuses]
    n_sent, n_whole = len(statuses), statuses.count(OK)
    ok = not open_here and n_whole <= counted and (others or counted <= n_sent)
    detail = f"{n_sent} sent, {len(open_here)} without an end, {n_whole} read to the end, {counted:g} counted by the server"
    if open_here:
        detail += f"; the first: {open_here[0].client} {open_here[0].instance}/{open_here[0].index}"
    return Check("ends", ok, detail)


def check_errors(result: RoundResult, allowed: Sequence[str]) -> Check:
    statuses = Counter(record.status for record in result.records)
    fine = (OK, CANCELLED, REFUSED, PENDING, UNFINISHED)  # The last two are the other check's.
    wrong = {s: n for s, n in statuses.items() if s not in fine and not s.startswith(tuple(allowed))}
    said = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    return Check("errors", not wrong, f"{said}; not allowed: {wrong or 'none'}")


def check_memory(samples: Sequence[Sample], warmup_share: float, growth_mib: float, growth_mib_per_min: float) -> list[Check]:
    """For each process that lived long enough (engines that were killed had lives of their own)."""
    checks = []
    for name in ("gateway", "engine"):
        own = [s for s in samples if s.process == name]
        last_pid = own[-1].pid if own else None
        life = [s for s in own if s.pid == last_pid]
        settled = life[int(len(life) * warmup_share) :]
        if len(settled) < SAMPLES_MIN:
            detail = f"{len(settled)} samples after the warm-up are too few: run longer, or sample more often"
            checks.append(Check(f"memory {name}", False, detail))
            continue
        slope = slope_per_s([(s.at_s, s.mib) for s in settled])
        minutes = (settled[-1].at_s - settled[0].at_s) / 60
        growth, bound = slope * 60 * minutes, max(growth_mib, growth_mib_per_min * minutes)
        first, last = settled[0].mib, settled[-1].mib
        detail = (
            f"{first:.1f} to {last:.1f} MiB without {settled[-1].store_bytes / 2**20:.1f} MiB of the store, "
            f"slope {slope * 60:+.3f} MiB/min over "
            f"{minutes:.1f} min = {growth:+.2f} MiB, bound {bound:.2f} MiB"
        )
        checks.append(Check(f"memory {name}", growth <= bound, detail))
    return checks


def check_books(status: Mapping[str, Any]) -> Check:
    """What /status still holds when it should hold nothing."""
    held = {"open_requests": status["open_requests"]}
    for name, figures in status["classes"].items():
        held |= {f"{name} {key}": figures[key] for key in ("queued", "running", "paused", "swapped")}
    held |= {f"pool {pool['name']} slots_held": pool["slots_held"] for pool in status["pools"]}
    left = {key: value for key, value in held.items() if value}
    return Check("books", not left, f"left: {left}" if left else "nothing open, queued, running or held")


def check_audit(path: Path | None) -> Check | None:
    """None: no audit log was asked for."""
    if path is None:
        return None
    verify = [sys.executable, "-m", "poise", "audit", "verify", "--path", str(path)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)  # noqa: S603
    return Check("audit", done.returncode == 0, (done.stdout + done.stderr).strip())


def slope_per_s(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line."""
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def planned(scenario: Scenario, minutes: float, kills: int, seed: int, drain_s: float) -> Scenario:
    """The scenario for so long, with kills at random moments, none in the first tenth and the second half."""
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    duration_s = minutes * 60
    events = tuple(Event("kill_engine", rng.uniform(0.1, 0.5) * duration_s) for _ in range(kills))
    return replace(scenario, duration_s=duration_s, drain_s=drain_s, events=events)


@contextlib.contextmanager
def besieged(url: str, seconds: float, seed: int) -> Iterator[None]:
    """Mild attackers beside the load, in a process of their own that ends by itself."""
    order = Order(int(url.rpartition(":")[2]), seconds, seed, intensity=SIEGE_INTENSITY, sources=["127.0.0.2", "127.0.0.3"])
    command = [sys.executable, "-m", "tests.attacks.besiege"]
    attackers = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # noqa: S603
    assert attackers.stdin is not None
    try:
        attackers.stdin.write(order.json() + "\n")
        attackers.stdin.flush()
        yield
    finally:
        attackers.stdin.close()
        attackers.wait()


async def soak(server: Server, url: str, scenario: Scenario, seed: int, sample_s: float) -> tuple[RoundResult, list[Sample]]:
    """Runs the load with a sample of both processes every so often."""
    samples: list[Sample] = []
    began_s = time.monotonic()

    async def watch() -> None:
        while True:
            samples.extend(await asyncio.to_thread(server.sample, time.monotonic() - began_s, url))
            await asyncio.sleep(sample_s)

    async with new_session() as session:
        await wait_ready(session, url, START_S_MAX)
        target = await discover(session, url, extensions=True)
        engine = server.engine()
        killer = EngineKiller(url, engine.pid if engine is not None else None)
        load = RoundLoad(scenario, target, session, seed=seed, text_seed=seed, killer=killer)
        watching = asyncio.create_task(watch())
        try:
            return await load.run(), samples
        finally:
            watching.cancel()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - the server started here
        body: bytes = response.read()
    return body


def own_bytes(pid: int, rss_bytes: int) -> int:
    """Anonymous memory of a process, here or in swap; `rss_bytes` where the system does not tell it apart."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return rss_bytes
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:"))]
    return sum(kib) * 1024 if len(kib) == 2 else rss_bytes


def store_bytes(url: str) -> int:
    """What the host store keeps, by the server's own books; 0 while it cannot say."""
    try:
        store = json.loads(fetch(f"{url}/status"))["store"]
    except (OSError, ValueError):
        return 0
    return sum(store["bytes_by_purpose"].values()) if store else 0


def counted_requests(url: str) -> dict[str, float]:
    """The server's own count of requests by how they ended, from /metrics."""
    lines = fetch(f"{url}/metrics").decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("poise_requests_total{")}


def wait_until_clean(url: str) -> Check:
    """The engine tells its levels a few times a second: what has ended may stand there for a moment."""
    until = time.monotonic() + CLEAN_S_MAX
    while not (found := check_books(json.loads(fetch(f"{url}/status")))).ok and time.monotonic() < until:
        time.sleep(0.2)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=0, help="engine kills at random moments")
    parser.add_argument("--drain-s", type=float, default=600.0, help="most seconds for what is in flight at the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", type=Path, default=Path(__file__).parents[1] / "scenarios" / "soak.toml")
    parser.add_argument("--sample-s", type=float, default=2.0, help="seconds between two memory samples")
    parser.add_argument("--warmup-share", type=float, default=0.5, help="of a process's samples, not looked at")
    parser.add_argument("--growth-mib", type=float, default=16.0)
    parser.add_argument("--growth-mib-per-min", type=float, default=0.25)
    parser.add_argument("--allow", action="append", default=[], metavar="STATUS", help="errors that clients may see")
    parser.add_argument("--audit", type=Path, help="the folder that the server was told to write its audit log to")
    parser.add_argument("--siege", action="store_true", help="mild attackers beside the load")
    parser.add_argument("--json", type=Path, help="write the summary to this file")
    parser.add_argument("serve", nargs="*", help="options of poise serve, after --")
    given = parser.parse_args()
    ranges = {
        "minutes": (0.05, 10_000),
        "kills": (0, 10_000),
        "sample_s": (0.05, 3600),
        "drain_s": (0, 3600),
        "warmup_share": (0, 0.9),
    }
    for name, (low, high) in ranges.items():
        if not low <= getattr(given, name) <= high:
            parser.error(f"--{name.replace('_', '-')} {getattr(given, name)}: expected {low} to {high}")
    return given


def main() -> int:
    given = options()
    try:
        scenario = planned(load_scenario(given.scenario), given.minutes, given.kills, given.seed, given.drain_s)
    except InputError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    allowed = [*ALLOWED, *(ALLOWED_WITH_KILLS if given.kills else ()), *given.allow]
    checks: list[Check] = []
    with tempfile.NamedTemporaryFile("w", prefix="poise-soak-", suffix=".log", delete=False, encoding="utf-8") as log:
        server = Server(given.serve, log)
        try:
            url = server.wait_for_url()
            print(f"{url}: {scenario.name} for {given.minutes:g} min, {given.kills} kill(s), seed {given.seed}; log: {log.name}")
            before = counted_requests(url)
            around = besieged(url, given.minutes * 60, given.seed) if given.siege else contextlib.nullcontext()
            with around:
                result, samples = asyncio.run(soak(server, url, scenario, given.seed, given.sample_s))
            books = wait_until_clean(url)
            ends = check_ends(result, before, counted_requests(url), others=given.siege)
            checks += [ends, check_errors(result, allowed)]
            checks += [*check_memory(samples, given.warmup_share, given.growth_mib, given.growth_mib_per_min), books]
        finally:
            code = server.stop()
    checks.append(Check("exit", code == 0, f"status {code}"))
    if (audit := check_audit(given.audit)) is not None:
        checks.append(audit)
    n_killed = sum(1 for event in result.events if event.done)
    if given.kills:
        checks.append(Check("kills", n_killed == given.kills, f"{n_killed} of {given.kills} done"))
    passed = all(check.ok for check in checks)
    for check in checks:
        print(f"{'ok    ' if check.ok else 'FAILED'} {check.name}: {check.detail}")
    print("passed" if passed else "FAILED")
    if given.json is not None:
        summary = {
            "passed": passed, "checks": [asdict(check) for check in checks], "minutes": given.minutes, "seed": given.seed,
            "serve": given.serve, "siege": given.siege,
            "kills": [asdict(event) for event in result.events], "host": host(), "commit": commit(),
            "statuses": Counter(record.status for record in result.records), "samples": [asdict(s) for s in samples],
        }  # fmt: skip
        given.json.write_text(json.dumps(summary), encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
