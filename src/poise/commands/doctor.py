"""`poise doctor`: looks at everything that a start and a calm run depend on, and says what to do where something is wrong.

Nothing is loaded, changed or left behind. What stops a start is bad (exit status 1); what makes the server slow, unsafe or
short-lived is a warning. Every diagnosis that is not good comes with its remedy."""

import json
import os
import platform
import resource
import shutil
import socket
import ssl
import stat
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from poise.config import LoadedSettings, ServerSettings, Settings
from poise.config.paths import audit_dir, cache_dir, keys_file, state_dir
from poise.gateway.http.connections.files import PER_CONNECTION, RESERVE, connections_max, connections_wanted
from poise.gateway.tenancy.exposure import Exposed, check, count_keys, key_required, tls_context
from poise.gateway.tenancy.keys import PEPPER_NAME, KeyRing, KeysError
from poise.llama.binding.library import EngineLibraryError, load
from poise.llama.files.gguf import ModelError
from poise.llama.fitting.capacity import problems as capacity_problems
from poise.llama.fitting.capacity import read_record
from poise.llama.fitting.fit import chooser, judge, model_path
from poise.operator_token import find_token

BAD_FOUND = 1
RELEASED = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock that is right shows an earlier time."""
DISK_FREE_MIN = 1 << 30
"""Room for a journal, the audit log and requantised weights of a small model."""
PRESSURE_MAX = 10.0
"""Percent of the last minute in which somebody waited for memory."""
LOAD_MAX = 0.5
"""Busy programs for each core, besides a server that is not running yet."""
SECRET_KEYS = ("auth.admin_key", "auth.keys.")
ANSWER_S = 2.0
RUNNING = "running"


class Grade(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found of one subject. `remedy` is empty where nothing has to be done."""

    subject: str
    grade: Grade
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What is asked of the machine; tests give it other answers."""

    proc: Path = Path("/proc")
    cores: Callable[[], int] = lambda: len(os.sched_getaffinity(0))
    load: Callable[[], float] = lambda: os.getloadavg()[0]
    files_max: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    free_disk: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    now_s: Callable[[], float] = time.time
    folders: tuple[Path, ...] = field(default_factory=lambda: (cache_dir(), state_dir()))


def examine(loaded: LoadedSettings, host: Host | None = None) -> list[Diagnosis]:
    """All diagnoses, in the order in which a start would meet their subjects."""
    host, settings = host or Host(), loaded.settings
    of_start = [*_host(host), *_clock(host), *_engine(), *_model(loaded), *_capacity(loaded)]
    of_settings = [*_secrets(loaded), *_keys(settings), *_address(settings), *_disk(settings, host)]
    return [*of_start, *of_settings, *_memory_pressure(host), *_open_files(settings, host)]


def to_text(diagnoses: list[Diagnosis]) -> str:
    """A line for each diagnosis, its remedy under it, and the verdict."""
    width = max(len(diagnosis.subject) for diagnosis in diagnoses)
    lines = []
    for diagnosis in diagnoses:
        lines.append(f"{diagnosis.grade:<8} {diagnosis.subject:<{width}}  {diagnosis.text}")
        if diagnosis.remedy:
            lines.append(f"{'':<8} {'':<{width}}  do: {diagnosis.remedy}")
    counts = {grade: sum(diagnosis.grade is grade for diagnosis in diagnoses) for grade in Grade}
    n_bad = counts[Grade.BAD]
    running = any(diagnosis.subject == "address" and RUNNING in diagnosis.text for diagnosis in diagnoses)
    verdict = "a server is running" if running else "`poise serve` can start"
    verdict = f"{n_bad} to mend before `poise serve` can start" if n_bad else verdict
    return "\n".join([*lines, "", f"{verdict}; {counts[Grade.WARNING]} warnings"])


def to_json(diagnoses: list[Diagnosis]) -> str:
    return json.dumps([asdict(diagnosis) for diagnosis in diagnoses])


def is_bad(diagnoses: list[Diagnosis]) -> bool:
    return any(diagnosis.grade is Grade.BAD for diagnosis in diagnoses)


def _host(host: Host) -> Iterator[Diagnosis]:
    is_linux, remedy = platform.system() == "Linux", "use Linux: elsewhere slow readers are noticed late"
    text = f"Linux, Python {platform.python_version()}" if is_linux else sys.platform
    yield _judged("system", text, not is_linux, remedy)
    cores, busy = host.cores(), host.load()
    text = f"{cores} cores for this process, load average {busy:.1f}"
    remedy = "end other busy programs, or leave them a core (engine.threads): compute threads wait for each other"
    yield _judged("cores", text, busy > LOAD_MAX * cores, remedy)


def _judged(subject: str, text: str, is_wrong: bool, remedy: str, grade: Grade = Grade.WARNING) -> Diagnosis:
    """One text either way; the grade and the remedy are for where something is wrong."""
    return Diagnosis(subject, grade, text, remedy) if is_wrong else Diagnosis(subject, Grade.OK, text)


def _clock(host: Host) -> Iterator[Diagnosis]:
    now = datetime.fromtimestamp(host.now_s(), UTC)
    is_wrong = now < RELEASED
    remedy = "set the clock (timedatectl set-ntp true): keys expire and audit entries are dated by it"
    yield _judged("clock", f"{now:%Y-%m-%d %H:%M} UTC" + " cannot be right" * is_wrong, is_wrong, remedy)


def _engine() -> Iterator[Diagnosis]:
    try:
        library = load()
    except EngineLibraryError as error:
        yield Diagnosis("engine", Grade.BAD, str(error), "make engine, or make engine-rebuild on another CPU")
    else:
        yield Diagnosis("engine", Grade.OK, f"llama.cpp {library.version().decode()}, its structures are as expected")


def _model(loaded: LoadedSettings) -> Iterator[Diagnosis]:
    try:
        fit = judge(loaded)
        weights = chooser(fit.path, loaded.settings).planned()
    except (ModelError, EngineLibraryError) as error:
        yield Diagnosis("model", Grade.BAD, str(error), "name a usable file with --model, or run `make model`")
        return
    yield Diagnosis("model", Grade.OK, f"{fit.path}; weights {weights.name}: {weights.reason}")
    text = f"needs {fit.need.total >> 20} MiB, and {fit.available >> 20} MiB is available"
    yield _judged("memory", text, not fit.fits, fit.remedy, Grade.BAD)


def _capacity(loaded: LoadedSettings) -> Iterator[Diagnosis]:
    """Limits beside what was measured here. Where nothing was, that is no fault unless it is required."""
    settings = loaded.settings
    try:
        path = model_path(settings)
        record = read_record(settings, path)
        found = capacity_problems(loaded, path)
    except (ModelError, EngineLibraryError, OSError):
        return  # it is a diagnosis of the model already
    grade = Grade.BAD if settings.server.require_measured else Grade.WARNING
    for line in found:
        text, _, remedy = line.partition("; ")
        yield Diagnosis("capacity", grade, text, remedy)
    if not found:
        unknown = "not measured; `poise capacity` tells how much load this host can take"
        text = f"measured {record.measured_at}; no limit is set above it" if record is not None else unknown
        yield Diagnosis("capacity", Grade.OK, text)


def _secrets(loaded: LoadedSettings) -> Iterator[Diagnosis]:
    """Files that hold keys in clear, as poise.toml does, are nobody else's to read."""
    files = {
        origin.removeprefix("file ")
        for key, origin in loaded.origins.items()
        if origin.startswith("file ") and key.startswith(SECRET_KEYS)
    }
    for name in sorted(files):
        yield from _private(Path(name), "it has API keys in it")


def _keys(settings: Settings) -> Iterator[Diagnosis]:
    path = keys_file(settings.auth)
    try:
        ring = KeyRing(path)
    except KeysError as error:
        remedy = "restore the file and its pepper, or move it away and make new keys"
        yield Diagnosis("keys", Grade.BAD, str(error), remedy)
        return
    n_keys = count_keys(settings.auth, ring)
    needed = "every request needs one" if key_required(settings.auth, n_keys) else "callers without one are answered"
    remedy = "remove auth.required = false, unless it is meant: keys that exist are then needed"
    open_door = n_keys > 0 and settings.auth.required is False
    yield _judged("keys", f"{n_keys} valid keys of tenants; {needed}", open_door, remedy)
    for file in (path, path.with_name(PEPPER_NAME)):
        if file.exists():
            yield from _private(file, "it is a secret")
    try:
        tls_context(settings.server)
        check(settings, _resolved(settings.server.host), n_keys=n_keys)
    except Exposed as error:
        yield Diagnosis("exposure", Grade.BAD, str(error), "set what the line says")


def _resolved(host: str) -> str:
    """The address that a start would judge; the name itself where it has none, which another check says."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0])
    except OSError:
        return host


def _private(path: Path, why: str) -> Iterator[Diagnosis]:
    mode = stat.S_IMODE(path.stat().st_mode)
    is_open = bool(mode & 0o077)
    text = f"{path} has mode {mode:04o}, and {why}" if is_open else f"{path} is yours only"
    yield _judged("permissions", text, is_open, f"chmod 600 {path}")


def _address(settings: Settings) -> Iterator[Diagnosis]:
    host, port = settings.server.host, settings.server.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        yield _taken(settings.server, error)
    else:
        yield Diagnosis("address", Grade.OK, f"{host}:{port or 'any port'} is free")


def _taken(server: ServerSettings, error: OSError) -> Diagnosis:
    """An address that cannot be had, which is as it should be where a server of this user is running on it."""
    place = f"[{server.host}]" if ":" in server.host else server.host
    url = f"{'https' if server.tls_cert else 'http'}://{place}:{server.port}"
    if find_token(url):
        return Diagnosis("address", Grade.OK, f"your server is {RUNNING} on {server.host}:{server.port}")
    if _answers(url):
        text = f"a poise server is {RUNNING} on {server.host}:{server.port}, and it is not this user's"
        return Diagnosis("address", Grade.WARNING, text, "take another --port for a second one")
    remedy = "another --port, or an address of this machine for --host"
    return Diagnosis("address", Grade.BAD, f"{server.host}:{server.port} cannot be used: {error.strerror}", remedy)


def _answers(url: str) -> bool:
    """Whether it is one of ours that has the port. Nothing secret is sent: its certificate need not be known."""
    try:
        context = ssl._create_unverified_context() if url.startswith("https") else None  # noqa: S323
        with urllib.request.urlopen(f"{url}/health/live", timeout=ANSWER_S, context=context) as response:  # noqa: S310
            return bool(json.load(response) == {"status": "ok", "live": True})
    except (OSError, ValueError):
        return False


def _disk(settings: Settings, host: Host) -> Iterator[Diagnosis]:
    folders = [*host.folders, *([audit_dir(settings.audit)] if settings.audit.enabled else [])]
    for folder in dict.fromkeys(folders):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            text = f"{folder} cannot be written, and what belongs there is lost"
            remedy = f"chown or chmod {there}, or set XDG_CACHE_HOME and XDG_STATE_HOME"
            yield Diagnosis("disk", Grade.WARNING, text, remedy)
        else:
            free, least = host.free_disk(there), DISK_FREE_MIN >> 20
            remedy = f"make room: less than {least} MiB is left for measurements, weights, journals and logs"
            yield _judged("disk", f"{folder}: {free >> 20} MiB free", free < DISK_FREE_MIN, remedy)


def _memory_pressure(host: Host) -> Iterator[Diagnosis]:
    """The kernel's own measure of waiting for memory (pressure stall information), where it tells it."""
    try:
        first = (host.proc / "pressure" / "memory").read_text().splitlines()[0]
        share = float(dict(part.split("=") for part in first.split()[1:])["avg60"])
    except (OSError, ValueError, KeyError, IndexError):
        return
    text = f"programs waited for memory in {share:g} % of the last minute"
    remedy = "end other programs, or lower pools.*.slots and store.budget_mb (`poise fit` shows what takes how much)"
    yield _judged("pressure", text, share > PRESSURE_MAX, remedy)


def _open_files(settings: Settings, host: Host) -> Iterator[Diagnosis]:
    server, most = settings.server, host.files_max()
    wanted, enough = connections_wanted(server), server.connections_total or server.max_connections
    room = wanted if most == resource.RLIM_INFINITY else connections_max(wanted, most)
    text = f"{most} files may be open: room for {room} of {wanted} connections"
    needed = PER_CONNECTION * enough + RESERVE
    remedy = f"raise the hard limit to {needed} (ulimit -Hn, LimitNOFILE), or lower server.max_connections to {room}"
    yield _judged("open files", text, room < enough, remedy)
