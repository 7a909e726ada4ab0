"""Chooses flash attention and the prompt chunk of each pool by measuring this host once, and remembers it.

On a CPU flash attention is faster for short contexts and slower for long ones, by factors that depend on processor and model;
so "auto" is a measurement. For each pool, with flash attention on and off in turn, a few passes that are typical for it:

    short pool   8 decodes at position 128; a chunk of 16 prompt tokens there
    long pool    a decode, a chunk of 16 and a chunk of 64 prompt tokens, with 2,048 cells to attend to

Computing 2,048 positions would take many seconds. The time of a pass depends on how many cells are attended to, not on what
they hold, so 16 computed cells are doubled by copying their state until there are enough. That needs a context whose slots
share one stream; with one sequence in it, it computes what a slot's own stream would.

The same passes give the scheduler's cost model its first guess. On a model so slow that this would take longer than the
limit, one token is timed and the rule of thumb is used: on for short contexts, off for long ones on a CPU. It also stands unless
the other mode is clearly faster. On a shared host memory can be slow for many seconds, which costs passes without flash
attention more: in such a spell it was 0.88 of the time in the long pool, where on the idle host it is 1.2 times.

Times are minima: what else runs on the host only ever adds to them."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from math import inf
from pathlib import Path

import msgspec

from poise.config.paths import cache_dir
from poise.engine.ports import Row
from poise.llama.binding.context import PoolContext
from poise.llama.binding.library import Library
from poise.llama.binding.model import Model
from poise.llama.files.cachefile import read_entries, write_entry
from poise.llama.files.cgroups import cpu_quotas, usable_threads
from poise.llama.files.memory import PoolSpec
from poise.scheduler.planning.budget import BatchShape, CostModel
from poise.scheduler.policy import LONG_POOL, CostPrior

QUANTUM = 16
LARGE_CHUNK = 64
CHEAPER = 0.85
"""A large chunk is worth saving up for when its tokens cost less than this share of a small one's; and a pool does not follow the
rule of thumb when the other mode takes less than this share of the time."""
NEAR, FAR = 128, 2048
ROWS_MAX = 8
REPETITIONS = 3
LIMIT_S = 10.0
FIT_ROUNDS = 40


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """What is best for a pool, and the first guess of its cost model."""

    flash_attention: bool
    chunk_tokens: int
    prior: CostPrior


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass to time: `n_rows` sequences that attend to `depth` cells compute `n_tokens` more each."""

    n_rows: int
    n_tokens: int
    depth: int

    @property
    def shape(self) -> BatchShape:
        shape = BatchShape()
        for _ in range(self.n_rows):
            shape.add(is_prompt=self.n_tokens > 1, start=self.depth, n_tokens=self.n_tokens)
        return shape


Times = dict[Pass, float]
"""Microseconds of each pass."""


def choose(
    model: Model,
    pools: Sequence[PoolSpec],
    *,
    kv_type: str = "f16",
    threads: int = 0,
    batch_tokens: int = 512,
    cache_file: Path | None = None,
    progress: Callable[[float], None] = lambda _: None,
    limit_s: float = LIMIT_S,
) -> dict[str, PoolChoice]:
    """A choice for each pool, from the cache or measured now. A pool's own setting and quantised KV cells go before.

    limit_s   time to measure in; 0: nothing is measured, and what is not known is chosen by the rule of thumb, for this time"""
    pools = [pool.cut_to(model.context_train) for pool in pools]
    threads = threads or usable_threads()
    cache_file = cache_file or cache_dir() / "measurements.json"
    key = _identity(model, pools, [threads, kv_type, batch_tokens])
    known = _known(read_entries(cache_file).get(key), pools)
    if known:
        return known
    if limit_s <= 0:
        return {pool.name: PoolChoice(_usual(model, pool, kv_type), QUANTUM, CostPrior()) for pool in pools}
    choices: dict[str, PoolChoice] = {}
    begin = time.perf_counter()
    for i, pool in enumerate(pools):
        progress(i / len(pools))
        probing = _Probing(model, pool, kv_type, threads, typical_passes(pool, batch_tokens))
        choices[pool.name] = probing.choose(deadline=begin + limit_s * (i + 1) / len(pools))
    write_entry(cache_file, key, msgspec.to_builtins(choices))
    progress(1.0)
    return choices


def typical_passes(pool: PoolSpec, batch_tokens: int) -> list[Pass]:
    """What is timed for a pool. The first is a single token: it tells how slow this is going to be."""
    first = Pass(1, 1, 0)
    if pool.name == LONG_POOL:
        far = QUANTUM
        while far * 2 <= min(FAR, pool.slot_cells // 2):
            far *= 2
        chunks = [Pass(1, n, far) for n in (QUANTUM, LARGE_CHUNK) if n <= batch_tokens]
        return [first, Pass(1, QUANTUM, 0), Pass(1, 1, far), *chunks]
    near = min(NEAR, pool.slot_cells // 2)
    rows = min(ROWS_MAX, pool.n_slots)
    passes = [first, Pass(1, QUANTUM, 0), Pass(1, 1, near), Pass(rows, 1, near), Pass(1, QUANTUM, near)]
    return list(dict.fromkeys(passes))  # with a single slot, two of them are the same


class _Probing:
    """The measurement of one pool, in every mode that it may be built in."""

    def __init__(self, model: Model, pool: PoolSpec, kv_type: str, threads: int, passes: Sequence[Pass]) -> None:
        self._model, self._pool, self._kv_type, self._threads, self._passes = model, pool, kv_type, threads, passes

    def choose(self, deadline: float) -> PoolChoice:
        modes = [True, False] if self._pool.flash_attention is None else [self._pool.flash_attention]
        if self._kv_type != "f16":
            modes = [True]
        with ExitStack() as stack:
            pools = [replace(self._pool, flash_attention=mode) for mode in modes]
            rest = (self._kv_type, self._threads, self._passes)
            probes = [stack.enter_context(Probe(self._model, pool, *rest)) for pool in pools]
            times = dict(zip(modes, self._times(probes, deadline), strict=True))
        best = self._faster(times)
        return PoolChoice(best, _chunk_tokens(times[best]), _fit(times[best]))

    def _times(self, probes: "Sequence[Probe]", deadline: float) -> list[Times]:
        """Times of each probe's passes, the probes taking turns. What the deadline cut off is missing for all of them."""
        times: list[Times] = [{} for _ in probes]
        for timed in self._passes:
            for repetition in range(REPETITIONS):
                if repetition and time.perf_counter() > deadline:
                    break
                for probe, measured in zip(probes, times, strict=True):
                    measured[timed] = min(probe.time_us(timed), measured.get(timed, inf))
            # A large chunk costs at most half of what its tokens would one by one.
            chunk_s = max(measured[self._passes[0]] for measured in times) * 1e-6 * LARGE_CHUNK / 2
            if time.perf_counter() + chunk_s > deadline:
                break
        return times

    def _faster(self, times: dict[bool, Times]) -> bool:
        """The mode in which the pool's typical step is clearly cheaper; else, and without all measurements, the rule of thumb."""
        if len(times) == 1:
            return next(iter(times))
        usual = _rule_of_thumb(self._model, self._pool)
        if any(len(measured) < len(self._passes) for measured in times.values()):
            return usual
        return usual if _step_us(times[not usual]) > CHEAPER * _step_us(times[usual]) else not usual


def _rule_of_thumb(model: Model, pool: PoolSpec) -> bool:
    """Flash attention on a GPU, and for short contexts on a CPU."""
    return model.gpu_layers > 0 or pool.name != LONG_POOL


def _usual(model: Model, pool: PoolSpec, kv_type: str) -> bool:
    """The mode of a pool that was not measured."""
    if kv_type != "f16":
        return True
    return _rule_of_thumb(model, pool) if pool.flash_attention is None else pool.flash_attention


def _step_us(times: Times) -> float:
    """The decodes, and 16 prompt tokens in whichever chunks are cheaper."""
    deep = {timed: us for timed, us in times.items() if timed.depth}
    decodes = max(us for timed, us in deep.items() if timed.n_tokens == 1)
    return decodes + min(us * QUANTUM / timed.n_tokens for timed, us in deep.items() if timed.n_tokens > 1)


def _chunk_tokens(times: Times) -> int:
    """The large chunk, where it was measured and is clearly cheaper."""
    per_token = {timed.n_tokens: us / timed.n_tokens for timed, us in times.items() if timed.depth}
    large = per_token.get(LARGE_CHUNK)
    return LARGE_CHUNK if large is not None and large < CHEAPER * per_token[QUANTUM] else QUANTUM


def _fit(times: Times) -> CostPrior:
    """The scheduler's own cost model, taught with the measured passes."""
    one = next(iter(times.values()))
    guess = CostPrior(fixed_us=0.3 * one, decode_us=0.7 * one, prompt_us=0.5 * one, attended_us=1e-4 * one)
    model = CostModel(guess)
    for _ in range(FIT_ROUNDS):
        for timed, us in times.items():
            model.observe(timed.shape, round(us))
    return CostPrior(model.fixed_us, model.decode_us, model.prompt_us, model.attended_us)


class Probe(AbstractContextManager["Probe"]):
    """A small context of a pool's kind, in one mode, in which passes are timed. A context manager."""

    def __init__(
        self, model: Model, pool: PoolSpec, kv_type: str, threads: int, passes: Sequence[Pass], batch_tokens: int = NEAR
    ) -> None:
        self._unified = pool.name == LONG_POOL
        self._threads = threads or usable_threads()
        self._has_quota = model.gpu_layers == 0 and any(cpu_quotas())
        spec = replace(
            pool,
            n_slots=2 if self._unified else max(timed.n_rows for timed in passes),
            slot_cells=max(timed.depth + timed.n_tokens for timed in passes) + QUANTUM,
        )
        self._context = PoolContext(
            model, spec, batch_tokens=batch_tokens, threads=threads, kv_type=kv_type, unified=self._unified
        )
        self._depth = 0
        self._compute(Pass(1, 1, 0), start=0)  # pages the weights in
        self._context.release(0)

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def time_us(self, timed: Pass) -> float:
        if timed.depth > self._depth:
            self._deepen(timed)
        start = 0 if timed.depth == 0 else QUANTUM if self._unified else timed.depth
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self._compute(timed, start)
        elapsed = time.perf_counter() - begin
        if self._has_quota:  # what stands still until its period is over is not slow
            elapsed = min(elapsed, (time.process_time() - begin_cpu) / self._threads)
        for slot in range(timed.n_rows):
            self._context.truncate(slot, start)
        return elapsed * 1e6

    def _compute(self, timed: Pass, start: int) -> None:
        tokens = list(range(timed.n_tokens))
        self._context.compute([Row(0, slot, start, tokens, timed.n_tokens == 1) for slot in range(timed.n_rows)])

    def _deepen(self, timed: Pass) -> None:
        """Fill the slots up to the pass's depth: computed in one slot and copied to the others, or doubled."""
        self._depth = timed.depth
        self._compute(Pass(1, QUANTUM if self._unified else timed.depth, 0), start=0)
        if self._unified:
            for _ in range((timed.depth // QUANTUM).bit_length() - 1):
                self._context.double(0, spare=1)
        else:
            state = self._context.read_state(0)
            for slot in range(1, self._context.info.n_slots):
                self._context.write_state(slot, state, timed.depth)


def _identity(model: Model, pools: Sequence[PoolSpec], host: Sequence[object]) -> str:
    """Everything that a measurement depends on."""
    with model.path.open("rb") as file:
        beginning = hashlib.sha256(file.read(1 << 20)).hexdigest()
    parts: dict[str, object] = {
        "model": [model.header.file_bytes, beginning],
        "cpu": cpu_name(),
        "host": [*host, model.gpu_layers],
    }
    parts |= {"library": library_versions(model.library), "pools": msgspec.to_builtins(list(pools)), "rule": CHEAPER}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def library_versions(library: Library) -> list[str]:
    """llama.cpp's and its binding's: what is measured with others does not hold."""
    return [library.version().decode(), metadata.version("llama-cpp-python")]


def cpu_name() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("model name")), platform.machine())


def _known(entry: object, pools: Sequence[PoolSpec]) -> dict[str, PoolChoice]:
    """A cached answer, if it is one for these pools."""
    try:
        choices = msgspec.convert(entry, dict[str, PoolChoice])
    except msgspec.ValidationError:
        return {}
    return choices if list(choices) == [pool.name for pool in pools] else {}
