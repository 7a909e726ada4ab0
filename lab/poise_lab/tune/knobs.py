"""What can be tuned: a setting, its candidates for this host, and how a change of it is judged. Pure.

Engine knobs change how fast a forward pass is, and passes are what is timed. Policy knobs change what the scheduler does with
them, which the simulator can foretell and a live server under load decides. The order is fixed: what makes every pass faster
first.

Left out, with the reason:

    unified KV cells            poise does not offer them: separate streams are what keeps a long context from taxing a chat
    separate prompt threads     in a busy step prompts and decodes are one batch: there is one number of threads
    engine.adapt_threads        pays off beside other busy programs, which a tuning run must not have
    *.pacing_ms                 moves tokens in time for the eye; every figure of it is a matter of taste
    limits of queues, tenants   they say whom to refuse, which no measurement decides (`poise capacity` tells what is too much)"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from poise.config import ConfigError, LoadedSettings
from poise.config.catalogue import catalogue

Stage = Literal["engine", "policy"]
Value = bool | int | float | str
Changes = dict[str, Value]
"""Settings by dotted key that differ from the untuned ones."""
STAGES: tuple[Stage, ...] = ("engine", "policy")
DOUBLED = (0.5, 2.0)
GENTLE = (2 / 3, 4 / 3)


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting with the values to try, none of which is the one in force. `pools`: whose passes an engine knob changes."""

    key: str
    stage: Stage
    current: Value
    candidates: tuple[Value, ...]
    pools: tuple[str, ...] = ()


_FACTORS: dict[str, tuple[float, ...]] = {
    "classes.interactive.itl_target_ms": (0.7, 1.5),
    "scheduler.fill_share": GENTLE,
    "classes.background.min_share": DOUBLED,
    "classes.background.slots_max": DOUBLED,
    "pools.short.slots": GENTLE,
    "scheduler.quantum_tokens": DOUBLED,
    "classes.background.heavy_tokens": DOUBLED,
    "classes.interactive.heavy_tokens": DOUBLED,
    "scheduler.step_max_ms": DOUBLED,
    "scheduler.fairness_grain_ms": DOUBLED,
    "scheduler.ageing": DOUBLED,
    "scheduler.turn_ms": DOUBLED,
    "scheduler.hole_steps": DOUBLED,
}
"""Policy knobs: multiples of the value in force."""

KV_KNOB, WEIGHTS_KNOB = "engine.kv_type", "model.weights"
FLASH_KNOBS = ("pools.short.flash_attention", "pools.long.flash_attention")


def knobs(loaded: LoadedSettings, n_cores: int) -> list[Knob]:
    """All of them, in the order in which they are tried; those without a candidate that fits the other settings are left out."""
    engine = loaded.settings.engine
    found = [
        Knob(WEIGHTS_KNOB, "engine", loaded.settings.model.weights, ("auto", "as-is")),
        Knob("engine.threads", "engine", engine.threads, _threads(engine.threads, n_cores)),
        *(Knob(key, "engine", _value(loaded, key), ("on", "off")) for key in FLASH_KNOBS),
        Knob("engine.batch_tokens", "engine", engine.batch_tokens, _scaled("engine.batch_tokens", loaded, DOUBLED)),
        Knob(KV_KNOB, "engine", engine.kv_type, ("f16", "q8_0", "q4_0")),
        *(Knob(key, "policy", _value(loaded, key), _scaled(key, loaded, by)) for key, by in _FACTORS.items()),
    ]
    usable = []
    for knob in found:
        others = [value for value in dict.fromkeys(knob.candidates) if value != knob.current]
        fitting = tuple(value for value in others if _fits(loaded, knob, value))
        usable.append(replace(knob, candidates=fitting, pools=pools_of(knob.key)))
    return [knob for knob in usable if knob.candidates]


def selected(found: Sequence[Knob], stage: str, names: Iterable[str]) -> list[Knob]:
    """Those of the stage, or of all stages, and of these names if any are given. Raises ValueError for a name of no knob."""
    wanted = list(names)
    for name in wanted:
        if name not in [knob.key for knob in found]:
            raise ValueError(f"--knob {name}: nothing to try; there are {', '.join(knob.key for knob in found)}")
    return [knob for knob in found if stage in ("all", knob.stage) and (not wanted or knob.key in wanted)]


def stage_of(key: str) -> Stage | None:
    """The stage of a setting that may be in a tuned file; None: it is no knob."""
    if key in _FACTORS:
        return "policy"
    engine = (KV_KNOB, WEIGHTS_KNOB, "engine.threads", "engine.batch_tokens")
    return "engine" if key in engine or key.endswith(".flash_attention") else None


def pools_of(key: str) -> tuple[str, ...]:
    """The pools whose passes an engine knob changes."""
    if key.startswith("pools."):
        return (key.split(".")[1],)
    return ("short",) if key == WEIGHTS_KNOB else ("short", "long")


def _fits(loaded: LoadedSettings, knob: Knob, value: Value) -> bool:
    try:
        varied = loaded.varied({knob.key: value})
    except (ConfigError, ValueError):  # of values together, and of one that is out of its range
        return False
    # A model on a GPU is neither converted nor are its KV cells a matter of the CPU's kernels.
    return not (knob.key == WEIGHTS_KNOB and varied.settings.engine.gpu_layers)


def _threads(current: int, n_cores: int) -> tuple[int, ...]:
    """Fewer than the cores: all of them is what 0 means."""
    found = [n for n in (n_cores, n_cores - 1, n_cores // 2) if n >= 1]
    return tuple(n for n in found if n != (current or n_cores))


def _scaled(key: str, loaded: LoadedSettings, factors: Sequence[float]) -> tuple[Value, ...]:
    """Multiples of the value in force, as whole numbers where the setting is one."""
    value = _value(loaded, key)
    assert isinstance(value, int | float), key
    whole = catalogue()[key].kind == "integer"
    return tuple(max(1, round(value * by)) if whole else round(value * by, 3) for by in factors)


def _value(loaded: LoadedSettings, key: str) -> Value:
    found = attrgetter(key)(loaded.settings)
    assert isinstance(found, bool | int | float | str), key
    return found
