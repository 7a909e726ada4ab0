"""What each step took and held, added up in plain lists: two or three microseconds a step, and nothing is formatted.

The parts of a step, in order: `drain` takes messages in, `plan` decides, `kv` carries cells, `forward` is the model, `sample`
draws tokens, `account` charges and advances, `emit` sends. Resting is no part of any step."""

from bisect import bisect_left

from poise.scheduler.planning.plan import StepPlan, StepResult
from poise.wire.figures import Distribution, StepFigures

PARTS = ("drain", "plan", "kv", "forward", "sample", "account", "emit")
STEP_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0, 5.0)
TOKENS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
RATIO = (0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


class Tally:
    """A histogram that is being filled."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def distribution(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


class StepTallies:
    """The figures of all steps since the start."""

    def __init__(self) -> None:
        self._parts_ns = [0] * len(PARTS)
        bounds = {"seconds": STEP_S, "cost_ratio": RATIO}
        self._held = {name: Tally(bounds.get(name, TOKENS)) for name in StepFigures.__struct_fields__[1:]}

    def add(self, plan: StepPlan, result: StepResult, parts_ns: tuple[int, ...]) -> None:
        """A step was carried out. `parts_ns`: what each of PARTS took."""
        whole_ns = 0
        for i, part_ns in enumerate(parts_ns):
            self._parts_ns[i] += part_ns
            whole_ns += part_ns
        self._held["seconds"].add(whole_ns / 1e9)
        n_decode = n_prompt = n_sequences = 0
        for batch, done in zip(plan.batches, result.batches, strict=True):
            if done.failed:
                continue
            for chunk in batch.chunks:
                if chunk.is_prompt:
                    n_prompt += chunk.n_tokens
                    self._held["chunk_tokens"].add(chunk.n_tokens)
                else:
                    n_decode += chunk.n_tokens
            n_sequences += len(batch.chunks)
            if batch.predicted_us > 0 and done.cost_us:
                self._held["cost_ratio"].add(done.cost_us / batch.predicted_us)
        self._held["decode_tokens"].add(n_decode)
        self._held["prompt_tokens"].add(n_prompt)
        self._held["sequences"].add(n_sequences)

    def figures(self) -> StepFigures:
        parts_us = {name: ns // 1000 for name, ns in zip(PARTS, self._parts_ns, strict=True)}
        return StepFigures(parts_us, **{name: tally.distribution() for name, tally in self._held.items()})
