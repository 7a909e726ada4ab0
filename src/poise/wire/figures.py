"""What the engine measures of itself, as a Status has it: counters since its start, and a few gauges."""

import msgspec


class Distribution(msgspec.Struct, frozen=True, array_like=True):
    """A histogram. `counts` has one more than `bounds`, the ascending upper ends of the buckets: what exceeds the last one."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0


class StepFigures(msgspec.Struct, frozen=True, array_like=True):
    """What steps took and held. `parts_us`: by part of the step, in order; they add up to the steps' whole time."""

    parts_us: dict[str, int] = {}
    seconds: Distribution = Distribution()
    decode_tokens: Distribution = Distribution()
    prompt_tokens: Distribution = Distribution()
    sequences: Distribution = Distribution()
    chunk_tokens: Distribution = Distribution()
    """Of each chunk of a prompt."""
    cost_ratio: Distribution = Distribution()
    """Measured over predicted cost of each forward pass."""


class StructureFigures(msgspec.Struct, array_like=True):
    """What constrained output has cost since the engine's start. `redraws`: draws that did not fit, each of which took a mask.
    `forced`: tokens that needed no draw. The engine counts in its own."""

    builds: int = 0
    build_us: int = 0
    redraws: int = 0
    mask_us: int = 0
    forced: int = 0
    failures: int = 0


class Bottleneck(msgspec.Struct, frozen=True, array_like=True):
    """For how long each resource was the limit, until `since_ns`; from then on (the engine's monotonic clock) it is `limit`."""

    limited_us: dict[str, int] = {}
    limit: str = ""
    since_ns: int = 0
