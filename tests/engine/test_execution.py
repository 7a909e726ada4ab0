"""Plans whose operations fail half-way: what builds on a failed one is not done either."""

from __future__ import annotations

from poise.engine.blackbox import BoxWriter
from poise.engine.blocks import BlockChain
from poise.engine.execution import Execution, Live
from poise.engine.inheritance import Inheritance
from poise.scheduler.planning.plan import Batch, Chunk, MoveSlot, ReleaseSlot, StepPlan, StoreSlot
from poise.scheduler.policy import DraftPolicy
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.scheduler import Scheduler
from poise.wire.messages import PoolInfo
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import GREEDY
from tests.scheduler.driver import policy
from tests.sim.exact_runner import ExactRunner


def test_cells_that_were_lost_on_the_way_are_not_stored() -> None:
    """A sequence was moved into a hole and preempted in one plan: when its move fails, there is nothing to store."""
    pools = [PoolInfo("short", 4, 512, True, 0)]
    failing = ExactRunner(pools, fault=lambda _, detail: isinstance(detail, MoveSlot))
    live = {7: Live(Request(7, "a", RequestClass.BACKGROUND, 3, 5), [1, 2, 3], GREEDY, BlockChain(b"poise", "a"))}
    inheritance = Inheritance(None, Scheduler(policy()).placement, b"")
    execution = Execution(failing, VirtualClock(), live, BoxWriter(), DraftPolicy(), inheritance)
    chunk = Chunk(7, 3, 0, 3, True, True)
    execution.carry_out(StepPlan(0, (), (Batch("short", (chunk,), 1),)))
    operations = (MoveSlot("short", 3, 1, 7), StoreSlot("short", 1, 99, 3), ReleaseSlot("short", 1, 7))
    result, _ = execution.carry_out(StepPlan(1, operations, ()))
    assert (result.lost, result.unstored, result.stored) == ((7,), (99,), ())
