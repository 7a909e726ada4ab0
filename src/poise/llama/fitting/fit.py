"""Whether a model and the settings fit this host's memory, by purpose, before anything is loaded; and if not, what to change.

The header says what the weights and the KV cells take; the buffers for computing are estimated on the safe side. The host store
counts in full: it fills up in the end. Sizes are in MiB, like the settings that end in _mb."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from poise.config import LoadedSettings, Settings
from poise.llama.choosing.weights import Chooser
from poise.llama.files.default_model import default_model
from poise.llama.files.gguf import GgufHeader, ModelError, read_header
from poise.llama.files.memory import MemoryNeed, PoolSpec, available_bytes, memory_needed
from poise.llama.fitting.advice import Changes, advise

GATEWAY_BYTES, TEXT_WORKER_BYTES = 160 << 20, 80 << 20
"""What the other processes take, where all of them have to do with one amount of memory."""
SLACK_BYTES = 64 << 20
"""What advice leaves free beyond the reserve, if it can: free memory is not the same a minute later."""
LONG_SLOTS_MAX = 8
"""The most slots of a long pool that memory decides."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What is needed and what there is, in bytes. `advice` is None where it fits, and where no setting would make it fit."""

    path: Path
    """The model's file; `weights` is the one that is really loaded (see `poise.llama.choosing.weights`)."""
    profile: str
    need: MemoryNeed
    available: int
    host: int
    advice: Changes | None = None
    weights: Path | None = None
    is_asked: bool = False
    """For an amount of memory that was named, and not for this host's."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """By setting, where the settings leave it to what memory pays for."""

    @property
    def fits(self) -> bool:
        return self.need.total <= self.available

    @property
    def options(self) -> str:
        """The advice as it is typed."""
        return " ".join(f"--set {key}={value}" for key, value in (self.advice or {}).items())

    @property
    def problem(self) -> str:
        """Why it does not fit and what to do, for one line behind the file's name."""
        need = self.need
        state = f" recurrent states {_mib(need.state)}," if need.state else ""
        return (
            f"needs {_mib(need.total)} of memory (weights {_mib(need.weights)}, KV cells {_mib(need.kv)},{state} computing"
            f" {_mib(need.compute)}, host store {_mib(need.store)}, to stay free {_mib(need.reserve)}), and"
            f" {_mib(self.available)} is available; {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        if self.advice is None:
            reserve = " or reserve less (engine.memory_reserve_mb)" if self.need.reserve else ""
            return f"fewer slots do not make it fit: use a smaller or more strongly quantised model{reserve}"
        return f"the least that makes it fit: {self.options}"


def judge(loaded: LoadedSettings, path: Path | None = None, *, available: int | None = None) -> Fit:
    """Reckon what the settings and their model (or the one at `path`) need. Raises ModelError for a file that is not usable."""
    settings = loaded.settings
    path = path or model_path(settings)
    available = available_bytes() if available is None else available
    weights = chooser(path, settings, available=available).planned().path
    header = read_header(weights)
    layout = lay_out(header, settings, available)
    need = settings_need(header, settings.with_layout(layout))
    advice = None
    if need.total > available:
        advice = _advice(loaded, header, available - SLACK_BYTES) or _advice(loaded, header, available)
    return Fit(path, settings.profile, need, available, int(psutil.virtual_memory().total), advice, weights, layout=layout)


def bytes_of(text: str) -> int:
    """An amount of memory, as in 2G, 1536M or 1.5GiB. Raises ValueError with one line."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(?:i?B)?", text.strip(), re.I)
    if found is None:
        raise ValueError(f'--memory: {text!r} is no amount of memory; it must be as in "2G" or "1536M"')
    return int(float(found[1]) * (1 << (30 if found[2] in "gG" else 20)))


def largest(loaded: LoadedSettings, memory: int) -> Fit:
    """Of the model and the other files in its folder, the largest that fits into `memory` with the settings as they are, beside
    the other processes; where none does, what makes the largest possible one fit. Raises ModelError."""
    path, most = model_path(loaded.settings), memory - GATEWAY_BYTES - loaded.settings.text.workers * TEXT_WORKER_BYTES
    there = [file for file in {path, *path.parent.glob("*.gguf")} if file.exists()]
    files = sorted(there, key=lambda file: (-file.stat().st_size, file)) or [path]
    found, problem = list[Fit](), None
    for file in files:
        try:
            found.append(replace(judge(loaded, file, available=max(0, most)), host=memory, is_asked=True))
        except ModelError as error:
            problem = error
        else:
            if found[-1].fits:
                return found[-1]
    if not found:
        raise problem or ModelError(path, "cannot be read")
    return next((fit for fit in found if fit.advice is not None), found[-1])


def chooser(
    path: Path, settings: Settings, progress: Callable[[float], None] = lambda _: None, *, available: int | None = None
) -> Chooser:
    """Who says which file is loaded for the model at `path`: one that fits into memory with the settings."""
    most = available_bytes() if available is None else available
    return Chooser(path, settings, lambda file: settings_need(read_header(file), settings).total <= most, progress)


def model_path(settings: Settings) -> Path:
    """The file that is to be served. Raises ModelError when it is the default model, which is not there."""
    return Path(settings.model.path) if settings.model.path else default_model()


def settings_need(header: GgufHeader, settings: Settings) -> MemoryNeed:
    """What a model takes with these settings."""
    engine = settings.engine
    return memory_needed(
        header,
        pool_specs(settings),
        kv_type=engine.kv_type,
        batch_tokens=engine.batch_tokens,
        store_bytes=settings.store_mb << 20,
        reserve_bytes=engine.memory_reserve_mb << 20,
    )


def pool_specs(settings: Settings) -> list[PoolSpec]:
    """The pools as the settings ask for them."""
    kv_type = settings.engine.kv_type
    # Quantised cells leave nothing to measure: they need flash attention.
    flash = {"on": True, "off": False, "auto": None if kv_type == "f16" else True}
    return [
        PoolSpec(name, settings.n_slots(name), pool.slot_tokens, flash[pool.flash_attention]) for name, pool in settings.pools
    ]


def lay_out(header: GgufHeader, settings: Settings, available: int) -> dict[str, int]:
    """What the settings leave to memory, by setting. Contexts that stay in their slots are the first use of memory that nothing
    else needs: the long pool has as many slots as its share of that pays for, up to LONG_SLOTS_MAX. The second are copies:
    the host store has twice what all slots hold, so that one tenant may have all of it stored, or half of what is left then."""
    layout = {f"pools.{name}.slots": settings.n_slots(name) for name, pool in settings.pools if pool.slots == "auto"}
    least = layout.get("pools.long.slots", LONG_SLOTS_MAX)
    for n in range(min(LONG_SLOTS_MAX, settings.engine.batch_tokens), least, -1):
        more = layout | {"pools.long.slots": n}
        need = settings_need(header, settings.with_layout(more))
        free = available - need.weights - need.store - need.reserve
        if need.kv + need.state <= settings.engine.kv_memory_share * free and need.total <= available - SLACK_BYTES:
            layout = more
            break
    if settings.store.budget_mb == "auto":
        need = settings_need(header, settings.with_layout(layout))
        left = available - SLACK_BYTES - (need.total - need.store)
        layout["store.budget_mb"] = max(settings.store_mb, min(2 * (need.kv + need.state), left // 2) >> 20)
    return layout


def _advice(loaded: LoadedSettings, header: GgufHeader, available: int) -> Changes | None:
    if header.tensor_bytes > available:
        return None
    return advise(loaded, header, lambda settings: settings_need(header, settings).total, available)


def to_text(fit: Fit) -> str:
    """A table and what follows from it."""
    rows = list(_rows(fit))
    width = max(len(name) for name, _, _ in rows)
    sizes = max(len(size) for _, size, _ in rows)
    lines = [f"  {name:<{width}}  {size:>{sizes}}  {remark}".rstrip() for name, size, remark in rows]
    rule = "  " + "-" * (width + sizes + 2)
    lines = [f"{fit.path}, profile {fit.profile}", "", *lines[:-1], rule, lines[-1], ""]
    if fit.is_asked:
        pools = " and ".join(f"{p.n_slots} x {p.slot_cells} tokens" for p in fit.need.pools)
        lines.append(f"Within {_mib(fit.host)}: {fit.path.name}, {pools}; {_mib(fit.available)} is left to the engine.")
    else:
        lines.append(f"This host has {_mib(fit.host)}; {_mib(fit.available)} is available to poise.")
    if fit.fits:
        lines.append(f"It fits, with {_mib(fit.available - fit.need.total)} to spare.")
    else:
        lines.append(f"It does not fit: {_mib(fit.need.total - fit.available)} too much; {fit.remedy}")
    return "\n".join(lines)


def to_json(fit: Fit) -> str:
    """The same in bytes, for programs."""
    need = fit.need
    by_pool = {kind: {pool.name: getattr(pool, kind) for pool in need.pools} for kind in ("kv", "state", "compute")}
    rest = {"store": need.store, "reserve": need.reserve, "total": need.total}
    document = {
        "model": str(fit.path),
        "weights": str(fit.weights or fit.path),
        "profile": fit.profile,
        "fits": fit.fits,
        "need_bytes": {"weights": need.weights, **by_pool, **rest},
        "available_bytes": fit.available,
        "host_bytes": fit.host,
        "advice": fit.advice,
    }
    return json.dumps(document, indent=2)


def _rows(fit: Fit) -> Iterator[tuple[str, str, str]]:
    need = fit.need
    yield "weights", _mib(need.weights), "" if fit.weights in (None, fit.path) else f"in another format: {fit.weights}"
    for pool in need.pools:
        slots = f"{pool.n_slots} slot{'s' if pool.n_slots > 1 else ''}"
        yield f"KV cells, {pool.name} pool", _mib(pool.kv), f"{slots} of {pool.slot_cells} tokens, {need.kv_type}"
    for pool in need.pools:
        if pool.state:
            yield f"states, {pool.name} pool", _mib(pool.state), "what recurrent layers remember, for each slot"
    for pool in need.pools:
        yield f"computing, {pool.name} pool", _mib(pool.compute), "estimated, at most"
    yield "host store", _mib(need.store), "when it is full"
    yield "to stay free", _mib(need.reserve), "engine.memory_reserve_mb"
    yield "together", _mib(need.total), ""


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"


class DoesNotFit(ModelError):
    """There is not enough memory for it now."""


def check_fit(path: Path, settings: Settings, *, available: int | None = None) -> None:
    """Refuse what memory cannot hold, where nobody is there to be advised. Raises ModelError."""
    need = settings_need(read_header(path), settings)
    available = available_bytes() if available is None else available
    if need.total > available:
        sizes = f"needs {_mib(need.total)} of memory and {_mib(available)} is available"
        raise DoesNotFit(path, f"{sizes}; `poise fit` says what to change")
