"""From settings to a runner that is ready: choice of the weights, memory check, loading, measured choices, pools."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from poise.config import Settings
from poise.engine.arena import Arena
from poise.llama.binding.model import Model
from poise.llama.choosing.measure import LIMIT_S, choose
from poise.llama.choosing.weights import Weights
from poise.llama.files.memory import available_bytes
from poise.llama.fitting.fit import check_fit, chooser, pool_specs
from poise.llama.running.runner import LlamaRunner
from poise.scheduler.policy import CostPrior
from poise.wire.messages import Ready

Progress = Callable[[float, str], None]

WEIGHTS_DONE = 0.6
"""Share of what is left of the progress bar that loading the weights takes; measuring and building the pools take the rest."""


CHOOSING_DONE = 0.6
"""Share of the whole that choosing the weights takes, where it has to be done."""


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner, what the gateway is sent about it, and what was measured for the scheduler (by pool).

    n_drawn: tokens of one pass that can be drawn after, at most, in every pool; 0: of a model that cannot forget what it was
    fed, so that no guesses can be taken back."""

    runner: LlamaRunner
    ready: Ready
    chunk_tokens: dict[str, int]
    priors: dict[str, CostPrior]
    n_drawn: int = 32
    build: str = ""
    """Of llama.cpp: another one may write states otherwise."""


def load_runner(
    path: Path, settings: Settings, progress: Progress, weights_again: str = "", arena: Arena | None = None
) -> LoadedRunner:
    """Load the model and build the pools. Raises ModelError or EngineLibraryError with one line.

    weights_again   those of an engine that was lost: they are loaded again, and nothing is measured, because streams wait
    arena           the host store's memory. What is in it already is no memory that is still needed"""
    available = available_bytes() + min(arena.file_bytes if arena else 0, settings.store_mb << 20)
    if weights_again:
        weights = chooser(path, settings, available=available).as_before(weights_again)
        check_fit(weights.path, settings, available=available)
        return _load(weights, settings, progress, arena, measure=False)
    chosen = 0.0

    def choosing(done: float) -> None:
        nonlocal chosen
        chosen = CHOOSING_DONE * done
        progress(chosen, "choosing weights (first start with this model)")

    weights = chooser(path, settings, choosing, available=available).choose()
    check_fit(weights.path, settings, available=available)
    return _load(weights, settings, lambda done, stage: progress(chosen + (1 - chosen) * done, stage), arena)


def _load(weights: Weights, settings: Settings, progress: Progress, arena: Arena | None, *, measure: bool = True) -> LoadedRunner:
    engine = settings.engine
    model = Model.load(
        weights.path, gpu_layers=engine.gpu_layers, progress=lambda done: progress(WEIGHTS_DONE * done, "loading the model")
    )
    try:
        specs = pool_specs(settings)
        measuring = "measuring flash attention (first start with this model)"
        choices = choose(
            model,
            specs,
            kv_type=engine.kv_type,
            threads=engine.threads,
            batch_tokens=engine.batch_tokens,
            limit_s=LIMIT_S if measure else 0.0,
            progress=lambda done: progress(WEIGHTS_DONE + (1 - WEIGHTS_DONE) * done, measuring),
        )
        built = [replace(spec, flash_attention=choices[spec.name].flash_attention) for spec in specs]
        priors = {name: choice.prior for name, choice in choices.items()}
        runner = LlamaRunner(
            model,
            built,
            batch_tokens=engine.batch_tokens,
            threads=engine.threads,
            kv_type=engine.kv_type,
            adapt_threads=engine.adapt_threads and engine.gpu_layers == 0,
            costs=priors,
            candidates_max=settings.sampling.candidates_max,
            arena=arena,
        )
    except BaseException:
        model.close()
        raise
    ready = Ready(
        model_description=model.description,
        model_bytes=model.size_bytes,
        n_vocab=model.n_vocab,
        context_train=model.context_train,
        pools=list(runner.pools),
        pid=os.getpid(),
        weights=weights.name,
        weights_reason=weights.reason,
    )
    chunk_tokens = {name: choice.chunk_tokens for name, choice in choices.items()}
    n_drawn = 0 if model.is_recurrent else runner.outputs_max
    return LoadedRunner(runner, ready, chunk_tokens, priors, n_drawn, model.library.version().decode())
