"""An engine process with a simulated runner: the real loop, socket and scheduler, without a model.

Run by the supervisor's tests as `python -m tests.gateway.simulated_engine MODE FD`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from poise.config import Settings
from poise.engine.arena import Arena
from poise.engine.ports import Row, Sampled
from poise.llama.binding.model import ModelError
from poise.llama.fitting.fit import DoesNotFit
from poise.llama.running.load import LoadedRunner, Progress
from poise.scheduler.planning.plan import KvOperation, StepPlan, StoreSlot
from poise.scheduler.scheduler import Scheduler
from poise.wire.messages import PoolInfo, Ready
from poise.wire.to_engine import SamplingParams
from poise.worker.engine import process
from poise.worker.engine.process import main
from tests.sim.exact_runner import ExactRunner

KILL_TOKEN = 666
"""A prompt that begins with this token kills the process in the middle of a step."""
BUG_TOKEN = 667
"""A prompt that begins with this token raises what no runner should raise."""
HANG_TOKEN = 668
"""A prompt that begins with this token stops the process in the middle of a step."""
OPEN_TOKEN = 669
"""A prompt that begins with this token ends the process when it is opened for its first pass."""
PLAN_LENGTH = 2
"""A prompt of exactly so many tokens breaks the loop as soon as it is planned, where nothing says that it was this one. Prompts
that are readmitted with their output are longer."""
TORN = b"torn"
"""What a half-written entry is full of."""
SLOW_STEP_S = 0.01
"""What a step takes in the mode "slow": long outputs take longer than any period of the engine's reports."""


class _Scheduler(Scheduler):
    def plan(self, now_ns: int) -> StepPlan:
        plan = super().plan(now_ns)
        if any(
            chunk.sample and chunk.start + chunk.n_tokens == PLAN_LENGTH
            for batch in plan.batches
            for chunk in batch.chunks
            if chunk.is_prompt
        ):
            raise ZeroDivisionError("a bug in planning")
        return plan


class _Runner(ExactRunner):
    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, output: Sequence[int] = ()) -> None:
        if prompt[0] == OPEN_TOKEN:
            os._exit(1)
        super().open(request_id, prompt, sampling, output)

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        if any(row.start == 0 and row.tokens[0] == KILL_TOKEN for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(row.start == 0 and row.tokens[0] == BUG_TOKEN for row in rows):
            raise ZeroDivisionError("a bug in the runner")
        if any(row.start == 0 and row.tokens[0] == HANG_TOKEN for row in rows):
            os.kill(os.getpid(), signal.SIGSTOP)
        if sys.argv[1] == "slow":
            time.sleep(SLOW_STEP_S)
        return super().execute(pool, rows)

    def apply(self, operation: KvOperation) -> int:
        """In the mode "torn:FILE" the process is killed in the middle of writing an entry, if the file is there; once."""
        if isinstance(operation, StoreSlot) and sys.argv[1].startswith("torn:") and (sign := Path(sys.argv[1][5:])).exists():
            sign.unlink()
            assert self._arena is not None
            memory = self._arena.reserve(operation.entry, 8 * operation.n_cells, operation.n_cells)
            memory[: 4 * operation.n_cells] = TORN * operation.n_cells
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(operation)

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def complain(path: Path, wrong: str, settings: Settings) -> None:
    """Refuse to load for what a file says is wrong; half the slots always fit."""
    if "does not fit" in wrong:
        if settings.n_slots("short") >= Settings().n_slots("short"):
            raise DoesNotFit(path, wrong)
    elif wrong:
        raise ModelError(path, wrong)


def load(path: Path, settings: Settings, progress: Progress, weights_again: str = "", arena: Arena | None = None) -> LoadedRunner:
    if sys.argv[1] == "bad-model":
        raise ModelError(path, "is not a model")
    if sys.argv[1].startswith("file:"):
        complain(path, Path(sys.argv[1][5:]).read_text(), settings)
    if sys.argv[1] == "dies":
        os.kill(os.getpid(), signal.SIGILL)
    progress(0.5, "loading")
    if sys.argv[1] == "loads-for-ever":
        select.select([int(sys.argv[-1])], [], [])  # to the end of the gateway's side, which says nothing meanwhile
    pools = [
        PoolInfo("short", settings.n_slots("short"), 4096, True, 0),
        PoolInfo("long", settings.n_slots("long"), 8192, True, 0),
    ]
    runner = _Runner(pools, arena=arena)
    ready = Ready("simulated", 0, 1000, 8192, pools, os.getpid(), "works", f"again: {weights_again}")
    return LoadedRunner(runner, ready, {}, {})  # type: ignore[arg-type]


if __name__ == "__main__":
    setattr(process, "Scheduler", _Scheduler)  # noqa: B010
    sys.exit(main(load))
