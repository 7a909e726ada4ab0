"""What findings are judged by is gathered from where it is: records, the engine's deaths and status, the audit log's figures."""

from __future__ import annotations

import errno
import signal

import msgspec
import pytest
from msgspec.structs import replace as replaced
from prometheus_client import CollectorRegistry

from poise.config import Settings
from poise.gateway.condition.lookout import Lookout
from poise.gateway.records.kept import Records
from poise.gateway.supervision.blame import Cause, Death
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.tasks import Tasks
from poise.metrics.audit import AuditMetrics
from poise.scheduler.request import Hold
from tests.gateway.fakes import FakeEngine, status, text_here
from tests.gateway.lives import Life

MIB = 1 << 20


class Post:
    """A lookout whose clock the test has."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.records = Records(Settings().results)
        self.audit = AuditMetrics(CollectorRegistry())
        self.now_s = 100.0
        self.gateway_bytes = 100 * MIB
        self.tasks = Tasks(clock=lambda: self.now_s)
        self.text = text_here()
        self.lookout = Lookout(
            self.engine,
            self.records,
            self.audit,
            self.tasks,
            self.text,
            rss_bytes=lambda: self.gateway_bytes,
            clock=lambda: self.now_s,
        )

    def look(self) -> dict[str, str]:
        """A second later: what is found, in words."""
        self.now_s += 1.0
        self.lookout.look()
        return {row.finding: row.text for row in self.lookout.rows(named=True)}


@pytest.fixture
def post() -> Post:
    return Post()


def test_a_request_counts_as_held_from_the_first_look_that_saw_it(post: Post) -> None:
    life = Life("held").started(0.0)
    post.records.add(life.record)
    life.record.held = Hold.SWAP
    assert [("reader_stuck" in post.look()) for _ in range(3)] == [False, False, True]
    (named,), (other,) = post.lookout.rows(named=True), post.lookout.rows(named=False)
    assert named.detail == {"requests": {"held": 2.0}}
    assert other == msgspec.structs.replace(named, detail=None)
    life.record.held = Hold.RUN
    post.look()
    life.record.held = Hold.PAUSE
    post.look()
    (again,) = post.lookout.rows(named=True)
    assert again.detail == {"requests": {"held": 2.0}}, "it has only been held for a moment again"


@pytest.mark.parametrize(("why", "found"), [("output", True), ("time", True), ("operator", False)])
def test_a_downgrade_is_found_unless_an_operator_wanted_it(post: Post, why: str, found: bool) -> None:
    post.records.add(Life("long").started(0.0).at(1.0, "downgrade", why=why).record)
    assert ("downgraded" in post.look()) is found


def test_engines_that_were_ended_on_purpose_are_no_loop(post: Post) -> None:
    crash, stop = (Death(Cause.CRASH, -number, "") for number in (signal.SIGSEGV, signal.SIGTERM))
    for death in (stop, stop, crash):
        post.engine.listeners[0](death)
    assert post.look() == {}
    post.engine.listeners[0](crash)
    assert "ended 2 times in 120 s (SIGSEGV)" in post.look()["crash_loop"]


def test_the_engines_memory_is_that_of_one_engine(post: Post) -> None:
    """What grows is what nobody accounts for; while there is no engine nothing is known."""
    for i in range(9):
        post.engine.state.status = replaced(status(), unaccounted_bytes=20 * i * MIB)
        if i == 5:
            phase, post.engine.state.phase = post.engine.state.phase, EnginePhase.RESTARTING
            post.look()
            post.engine.state.phase = phase
        assert post.look() == {}
    post.engine.state.status = replaced(status(), unaccounted_bytes=180 * MIB)
    post.look()
    post.engine.state.status = replaced(status(), unaccounted_bytes=200 * MIB)
    assert "The engine's memory" in post.look()["memory_growing"]


def test_the_gateways_memory_is_without_what_it_keeps(post: Post) -> None:
    for _ in range(8):
        life = Life(f"r{post.now_s:.0f}").started(0.0)
        life.record.texts += ["x" * 10 * MIB]
        post.records.add(life.record)
        post.gateway_bytes += 10 * MIB
        assert post.look() == {}
    for _ in range(7):
        post.gateway_bytes += 10 * MIB
        found = post.look()
    assert "The gateway's memory" in found["memory_growing"]


def test_the_audit_logs_figures_are_asked_each_time(post: Post) -> None:
    """A slow piece of work is told once it is over, and while it lasts; losses by their number."""
    post.audit.worked("sync", 1.5)
    post.audit.lost(3)
    found = post.look()
    assert found["disk_slow"].startswith("The disk took 1.5 s")
    assert found["audit_lost"].endswith("since the start: 3")
    later = Post()
    later.audit.busy_s, later.audit.n_queued = lambda: 4.0, lambda: 7
    assert later.look()["disk_slow"] == "The disk took 4.0 s for one piece of work of the audit log; entries that wait: 7"


def test_text_workers_that_end_again_and_again_are_told(post: Post) -> None:
    """Three within a minute, with the reasons; one that ends is no finding."""
    post.text.deaths += [(post.now_s - 100, "crash"), (post.now_s - 1, "crash"), (post.now_s, "timeout")]
    assert post.lookout.rows(named=True) == []
    post.text.deaths.append((post.now_s, "crash"))
    (told,) = post.lookout.rows(named=True)
    assert told.finding == "text_workers_ending"
    assert "crash 2 times, timeout 1 times" in told.text
    post.now_s += 60
    assert post.lookout.rows(named=True) == []


def test_a_task_that_fails_is_told_also_when_it_is_the_one_that_looks(post: Post) -> None:
    """For a minute after its last failure; it needs no look."""
    post.tasks.watch("findings")
    post.tasks.failed("findings", OSError(errno.EMFILE, "too many open files"))
    (told,) = post.lookout.rows(named=True)
    assert told.finding == "task_failing"
    assert "findings (OSError EMFILE, 1 times)" in told.text
    assert told.detail == {"tasks": ["findings"]}
    post.now_s += 61
    assert post.lookout.rows(named=True) == []
