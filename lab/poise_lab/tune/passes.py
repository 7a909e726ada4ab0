"""The child that times forward passes with the settings in force and with a candidate's, the two taking turns.

Started as `python -m poise_lab.tune.passes` with an Order on its standard input. It answers with a line of JSON for each round,
as soon as the round is over; so whoever reads it may end it at any time. A process of its own: its memory is free again when it
ends.

The passes are those of a busy server: a prompt's chunk, eight decodes and one in a short context; a decode and chunks in a long
one (`poise.llama.choosing.pace`, `poise.llama.choosing.measure`). In a round each pass is timed a few times on both sides, and
the shortest time counts."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import msgspec

from poise.config import Settings
from poise.engine.ports import RunnerError
from poise.llama.binding.library import EngineLibraryError
from poise.llama.binding.model import Model, ModelError
from poise.llama.choosing.measure import LARGE_CHUNK, NEAR, ROWS_MAX, Pass, Probe, choose, typical_passes
from poise.llama.choosing.quality import TooSlow, compare
from poise.llama.files.memory import PoolSpec
from poise.llama.fitting.fit import chooser, model_path, pool_specs
from poise.scheduler.policy import LONG_POOL

DECODE_TIMES = 6
PROMPT_TIMES = 2
LONG_TIMES = 1
WIDE_TOKENS = 256


class Order(msgspec.Struct, frozen=True):
    """What to time: settings before and after as JSON, the pools whose passes matter, and how many rounds.

    `quality`: when the candidate is the faster one, its KV cells are held against those of 16 bits."""

    before: str
    after: str
    pools: tuple[str, ...]
    rounds: int
    quality: bool = False


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the answer: the times of a round in microseconds by pass, before and after; or what ends the comparison."""

    times: dict[str, tuple[float, float]] = {}
    problem: str = ""
    same: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    """What decides how fast a pass is."""

    path: Path
    gpu_layers: int
    threads: int
    kv_type: str
    batch_tokens: int
    pools: tuple[PoolSpec, ...]


def main() -> int:
    """Reads the order, writes the lines."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        _carry_out(order)
    except (ModelError, EngineLibraryError, RunnerError, TooSlow) as error:
        _tell(Line(problem=" ".join(str(error).split())))
    return 0


def _carry_out(order: Order) -> None:
    before, after = (Settings.model_validate_json(text) for text in (order.before, order.after))
    paths = [chooser(model_path(s), s).choose().path for s in (before, after)]
    with ExitStack() as stack:
        models = {path: stack.enter_context(_load(path, before)) for path in dict.fromkeys(paths)}
        own, other = (models[path] for path in paths)
        builds = [_build(own, before, order.pools), _build(other, after, order.pools)]
        if builds[0] == builds[1]:
            _tell(Line(same=True))
            return
        ratios = _rounds(stack, (own, other), builds, order.rounds)
    if order.quality and prod(ratios) ** (1 / max(1, len(ratios))) < 1:
        _tell(Line(problem=_kv_problem(paths[1], after)))


def _rounds(stack: ExitStack, models: tuple[Model, Model], builds: list[Build], n_rounds: int) -> list[float]:
    """Times each pass in turn and tells each round; returns the rounds' mean ratios after / before."""
    timed = _passes(builds[0], wide=builds[0].batch_tokens != builds[1].batch_tokens)
    probes = {}
    for spec_number, passes in timed.items():
        for side, (model, build) in enumerate(zip(models, builds, strict=True)):
            pool, most = build.pools[spec_number], max(NEAR, build.batch_tokens)
            probe = Probe(model, pool, build.kv_type, build.threads, list(passes.values()), most)
            probes[spec_number, side] = stack.enter_context(probe)
    ratios = []
    for number in range(n_rounds):
        times: dict[str, tuple[float, float]] = {}
        for spec_number, passes in timed.items():
            is_long = builds[0].pools[spec_number].name == LONG_POOL
            for name, one in passes.items():
                n_times = LONG_TIMES if is_long else PROMPT_TIMES if one.n_tokens > 1 else DECODE_TIMES
                best = [float("inf")] * 2
                for turn in range(n_times):
                    for side in (0, 1) if (number + turn) % 2 == 0 else (1, 0):
                        best[side] = min(best[side], probes[spec_number, side].time_us(one))
                times[name] = (best[0], best[1])
        _tell(Line(times=times))
        ratios.append(prod(b / a for a, b in times.values()) ** (1 / len(times)))
    return ratios


def _passes(build: Build, *, wide: bool) -> dict[int, dict[str, Pass]]:
    """By number of the pool and name. `wide`: a chunk that fills a batch, too."""
    found: dict[int, dict[str, Pass]] = {}
    for number, pool in enumerate(build.pools):
        if pool.name == LONG_POOL:
            deep = [one for one in typical_passes(pool, build.batch_tokens) if one.depth]
            found[number] = {f"long_{_kind(one)}_us": one for one in deep}
            continue
        near = min(NEAR, pool.slot_cells // 2)
        chosen = [Pass(1, LARGE_CHUNK, near), Pass(min(ROWS_MAX, pool.n_slots), 1, near), Pass(1, 1, near)]
        if wide:
            chosen.append(Pass(1, min(WIDE_TOKENS, build.batch_tokens, pool.slot_cells - near - NEAR), near))
        found[number] = {f"{_kind(one)}_us": one for one in chosen if one.n_tokens > 0}
    return found


def _kind(one: Pass) -> str:
    return f"prompt_{one.n_tokens}" if one.n_tokens > 1 else f"decode_{one.n_rows}"


def _build(model: Model, settings: Settings, pools: tuple[str, ...]) -> Build:
    """With what "auto" means here for the pools."""
    engine = settings.engine
    specs = pool_specs(settings)
    choices = choose(model, specs, kv_type=engine.kv_type, threads=engine.threads, batch_tokens=engine.batch_tokens)
    built = [
        replace(spec.cut_to(model.context_train), flash_attention=choices[spec.name].flash_attention)
        for spec in specs
        if spec.name in pools
    ]
    return Build(model.path, engine.gpu_layers, engine.threads, engine.kv_type, engine.batch_tokens, tuple(built))


def _load(path: Path, settings: Settings) -> Model:
    return Model.load(path, gpu_layers=settings.engine.gpu_layers)


def _kv_problem(path: Path, settings: Settings) -> str:
    """How far the candidate's KV cells change the model's predictions, held against the limit of other weights."""
    limits, engine = settings.model, settings.engine
    with _load(path, settings) as model:
        quality = compare(
            model,
            model,
            threads=engine.threads,
            kl_max=limits.weights_kl_max,
            limit_s=limits.weights_check_s,
            kv_type=engine.kv_type,
        )
    return quality.problem(limits.weights_perplexity_max, limits.weights_kl_max)


def _tell(line: Line) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
