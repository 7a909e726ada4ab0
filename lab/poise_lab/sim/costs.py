"""What the simulated machine costs: for each pool a linear model and its noise, the loop's own time, and carrying cells.

A cost file is TOML, written by `poise sim --calibrate` from a live journal and read by `poise sim --cost`:

    [pools.short]
    fixed_us = 2110.0                     of each forward pass
    decode_us = 4870.0                    of each decoded token
    prompt_us = 3120.0                    of each prompt token
    attended_us = 0.91                    of each cell that a token attends to
    noise = [0.93, ..., 1.41]             measured / predicted, the means of groups of equally many passes; each is as likely

    [host]
    step_us = 310.0                       of the loop between two forward passes, at the least
    row_us = 14.0                         and for each row of a batch
    carry_us_per_cell = 3.1               of a store, load, copy or move
    way_us = 2500.0                       from a client to the engine, and as long back: HTTP, templates, tokenizing, sockets"""

import random
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, CostPrior
from poise_lab.scenarios.files import InputError, explained

Pace = Callable[[str, float], int]
"""From a pool and a batch's predicted cost in microseconds to the nanoseconds that it takes."""


WAY_US = 2500.0
"""Unless a cost file says otherwise. With two cores and few clients, a chat's first token reached the client 5.4 ms (median)
after the engine had drawn it, the engine's own time apart."""
HOST_PARTS = {"step_us": 0.0, "row_us": 0.0, "carry_us_per_cell": 0.0, "way_us": WAY_US}
"""What a cost file says of the host, in the order of Costs, and what is taken where it does not."""


@dataclass(frozen=True, slots=True)
class Costs:
    """See the module's text. Without `noise` every step takes what the model says."""

    pools: Mapping[str, CostPrior] = field(default_factory=lambda: dict.fromkeys((SHORT_POOL, LONG_POOL), CostPrior()))
    noise: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    step_us: float = 0.0
    row_us: float = 0.0
    carry_us_per_cell: float = 3.0
    way_us: float = 0.0

    @classmethod
    def of(cls, pools: Mapping[str, CostPrior], noise: Mapping[str, tuple[float, ...]], *host: float) -> "Costs":
        """A pool that the load never used is taken to cost what another one does. `host`: in the order of HOST_PARTS."""
        known = next(iter(pools.values()), CostPrior())
        return cls({name: pools.get(name, known) for name in (SHORT_POOL, LONG_POOL)}, noise, *host)

    def loop_ns(self, n_rows: int) -> int:
        """The loop's own time in a step with so many rows."""
        return int((self.step_us + self.row_us * n_rows) * 1000)

    def pace(self, seed: int) -> Pace:
        """A generator of step times: the prediction, times the noise."""
        rng = random.Random(seed)  # noqa: S311 - a workload, not a secret

        def pace(pool: str, predicted_us: float) -> int:
            groups = self.noise.get(pool)
            factor = groups[int(rng.random() * len(groups))] if groups else 1.0
            return int(predicted_us * factor * 1000)

        return pace


def load_costs(path: Path) -> Costs:
    """Read a cost file. Raises InputError."""
    with explained(path):
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        pools = {name: _prior(table) for name, table in values["pools"].items()}
        noise = {name: tuple(map(float, t["noise"])) for name, t in values["pools"].items() if t.get("noise")}
        host = values.get("host", {})
        parts = [float(host.get(key, usual)) for key, usual in HOST_PARTS.items()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: not a cost file: {error!r}") from error
    return Costs.of(pools, noise, *parts)


def _prior(table: Mapping[str, Any]) -> CostPrior:
    names = ("fixed_us", "decode_us", "prompt_us", "attended_us")
    costs = [float(table[name]) for name in names]
    if min(costs) < 0:
        raise ValueError("a cost is negative")
    return CostPrior(*costs)
