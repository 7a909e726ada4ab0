"""How far the choices of a request have come, and what that makes of the next event: the whole table, for two choices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.gateway.models.local.choice import Act, Stage, act_on, is_refusal
from poise.gateway.models.local.generation import ChoiceRequest, Generation
from poise.gateway.records.following import Stop
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import Heading
from poise.gateway.request.refusals import internal_error
from poise.gateway.supervision.engine import ENGINE_LOST, QUARANTINED, SERVER_STOPPING, RequestEvent
from poise.metrics.engine import EngineReading
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass, Started
from poise.wire.messages import Accepted, Finish, Refused, Token
from poise.wire.to_engine import SamplingParams
from tests.gateway.fakes import FakeEngine, text_model

ASKED, TAKEN, LIVE, BACK, OVER = Stage.ASKED, Stage.TAKEN, Stage.LIVE, Stage.TAKEN_BACK, Stage.OVER


class SlowEngine(FakeEngine):
    """One that says nothing to an abort before the test does."""

    def _abort(self, request_id: int) -> None:
        self.aborted.append(request_id)


class Life:
    """A request with two choices, one of which ends at `!`."""

    def __init__(self) -> None:
        self.engine = SlowEngine()
        self.metrics = GatewayMetrics(lambda: EngineReading(True, 0, None))
        self.n_freed = 0
        self.metrics.streams.freed = self._freed
        origin = Origin("req-1", "a", RequestClass.INTERACTIVE, "messages", 0.0)
        self.record = Record(origin, Heading("chatcmpl-1", 0, "toy", "fp"), 2)
        self.n_ends = 0
        self.generation = Generation(self.record, self.engine, text_model(), self.metrics)
        self.record.on_end = self._ended
        self.record.start(self.generation)
        request = ChoiceRequest([1], 9, SamplingParams())
        self.generation.submit([request, request], stop=["!"])

    def _freed(self, request_class: str, seconds: float) -> None:
        self.n_freed += 1

    def _ended(self, record: Record) -> None:
        self.n_ends += 1

    def hear(self, what: str) -> None:
        """`0 token`: the engine says that of choice 0; `leave` and so on: somebody else does something."""
        if what in OURS:
            OURS[what](self)
        elif what:
            index, event = what.split()
            self.engine.submissions[int(index)].handle.put(EVENTS[event](int(index) + 1))
        for choice in self.generation._choices:
            assert (choice.stage in (BACK, OVER)) == (choice.record.outcome is not None)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(choice.stage for choice in self.generation._choices)

    @property
    def stands(self) -> str:
        """`waits` for the engine, is `open`, has `ended`, or was refused or failed with a code."""
        record = self.record
        if record.failure is not None:
            return f"{'failed' if record.is_open else 'refused'}: {record.failure.code}"
        return "ended" if record.is_ended else "open" if record.is_open else "waits"


def finish(reason: str) -> Callable[[int], RequestEvent]:
    return lambda request_id: Finish(request_id, reason, 1, 1, 1000)


EVENTS: dict[str, Callable[[int], RequestEvent]] = {
    "accepted": lambda request_id: Accepted(request_id, 1, 0),
    "refused": lambda request_id: Refused(request_id, "queue_full", 9, 9, 1000),
    "start": lambda request_id: Started(request_id, 1, "short", 0),
    "token": lambda request_id: Token(request_id, ord("x")),
    "stop_string": lambda request_id: Token(request_id, ord("!")),
    "nonsense": lambda request_id: Token(request_id, 10**9),
    "stopped": finish("stop"),
    "aborted": finish("aborted"),
    "failed": finish("failed"),
    "lost": finish(ENGINE_LOST),
    "stopping": finish(SERVER_STOPPING),
    "quarantined": finish(QUARANTINED),
}
OURS: dict[str, Callable[[Life], None]] = {
    "leave": lambda life: life.generation.stop(Stop.LEFT),
    "stuck": lambda life: life.generation.stop(Stop.READER_TIMEOUT),
    "fail": lambda life: life.generation.fail(internal_error("err-1")),
}
OPEN = ["0 accepted", "1 accepted"]
"""What brings both choices to LIVE."""


@pytest.mark.parametrize(
    ("before", "what", "stages", "stands"),
    [
        # Until the engine has said something of each.
        ([], "", (ASKED, ASKED), "waits"),
        ([], "0 accepted", (TAKEN, ASKED), "waits"),
        ([], "0 refused", (BACK, BACK), "refused: queue_full"),
        ([], "0 lost", (BACK, BACK), "refused: engine_lost"),
        ([], "0 stopping", (BACK, BACK), "refused: server_stopping"),
        ([], "0 quarantined", (BACK, BACK), "refused: request_quarantined"),
        ([], "0 failed", (TAKEN, ASKED), "waits"),
        ([], "leave", (BACK, BACK), "ended"),
        ([], "stuck", (BACK, BACK), "ended"),
        ([], "fail", (BACK, BACK), "refused: internal_error"),
        (["0 accepted"], "0 token", (TAKEN, ASKED), "waits"),
        (["0 accepted"], "0 lost", (TAKEN, ASKED), "waits"),
        (["0 accepted"], "1 accepted", (LIVE, LIVE), "open"),
        (["0 accepted"], "1 refused", (BACK, BACK), "refused: queue_full"),
        (["0 accepted"], "1 lost", (BACK, BACK), "refused: engine_lost"),
        (["0 accepted"], "leave", (BACK, BACK), "ended"),
        (["0 accepted"], "fail", (BACK, BACK), "refused: internal_error"),
        # What was kept is written when the last one is taken, whatever it is.
        (["0 accepted", "0 token", "0 stopped"], "1 accepted", (OVER, LIVE), "open"),
        (["0 accepted", "0 stop_string"], "1 accepted", (BACK, LIVE), "open"),
        (["0 accepted", "0 stop_string", "0 stopped"], "1 accepted", (BACK, LIVE), "open"),
        (["0 accepted", "0 lost"], "1 accepted", (OVER, BACK), "failed: engine_lost"),
        (["0 accepted", "0 nonsense"], "1 accepted", (BACK, BACK), "failed: internal_error"),
        # Live.
        (OPEN, "0 start", (LIVE, LIVE), "open"),
        (OPEN, "0 token", (LIVE, LIVE), "open"),
        (OPEN, "0 stop_string", (BACK, LIVE), "open"),
        (OPEN, "0 stopped", (OVER, LIVE), "open"),
        (OPEN, "0 failed", (OVER, BACK), "failed: internal_error"),
        (OPEN, "0 lost", (OVER, BACK), "failed: engine_lost"),
        (OPEN, "0 stopping", (OVER, BACK), "failed: server_stopping"),
        ([*OPEN, "0 token"], "0 stopping", (OVER, LIVE), "open"),
        (OPEN, "0 nonsense", (BACK, BACK), "failed: internal_error"),
        (OPEN, "leave", (BACK, BACK), "ended"),
        (OPEN, "stuck", (BACK, BACK), "ended"),
        (OPEN, "fail", (BACK, BACK), "failed: internal_error"),
        # One of them is over, or is taken back.
        ([*OPEN, "0 stopped"], "0 token", (OVER, LIVE), "open"),
        ([*OPEN, "0 stopped"], "0 stopped", (OVER, LIVE), "open"),
        ([*OPEN, "0 stopped"], "1 stopped", (OVER, OVER), "ended"),
        ([*OPEN, "0 stopped"], "1 stop_string", (OVER, BACK), "ended"),
        ([*OPEN, "0 stopped"], "1 lost", (OVER, OVER), "failed: engine_lost"),
        ([*OPEN, "0 stopped"], "leave", (OVER, BACK), "ended"),
        ([*OPEN, "0 stop_string"], "0 token", (BACK, LIVE), "open"),
        ([*OPEN, "0 stop_string"], "0 aborted", (OVER, LIVE), "open"),
        ([*OPEN, "0 stop_string"], "1 stopped", (BACK, OVER), "ended"),
        ([*OPEN, "0 stop_string"], "leave", (BACK, BACK), "ended"),
        # After the end nothing changes it any more.
        ([*OPEN, "leave"], "0 token", (BACK, BACK), "ended"),
        ([*OPEN, "leave"], "0 aborted", (OVER, BACK), "ended"),
        ([*OPEN, "leave"], "0 failed", (OVER, BACK), "ended"),
        ([*OPEN, "leave"], "fail", (BACK, BACK), "ended"),
        ([*OPEN, "leave"], "leave", (BACK, BACK), "ended"),
        ([*OPEN, "0 lost"], "1 aborted", (OVER, OVER), "failed: engine_lost"),
        ([*OPEN, "fail"], "leave", (BACK, BACK), "failed: internal_error"),
        (["leave"], "0 refused", (BACK, BACK), "ended"),
        (["leave"], "0 aborted", (OVER, BACK), "ended"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else "+".join(value) if isinstance(value, list) else value,
)
def test_transitions(before: list[str], what: str, stages: tuple[Stage, Stage], stands: str) -> None:
    """Who is taken back has been aborted once, and nobody else; the record ends once at most."""
    life = Life()
    for event in before:
        life.hear(event)
    life.hear(what)
    assert (life.stages, life.stands) == (stages, stands)
    assert len(life.engine.aborted) == len(set(life.engine.aborted))
    for index, stage in enumerate(life.stages):
        unasked = life.engine.submissions[index].handle.done  # an engine that has said its last word is asked nothing
        if stage is BACK:
            assert unasked or index + 1 in life.engine.aborted
    assert life.n_ends == life.record.is_ended


def test_the_last_word_on_what_was_taken_back_is_charged_once() -> None:
    """It says what the engine had spent, and that the slot is free; nothing after it does."""
    life = Life()
    for what in [*OPEN, "0 token", "leave"]:
        life.hear(what)
    assert (life.record.served_us, life.n_freed) == (0, 0)
    life.hear("0 aborted")
    life.hear("0 aborted")
    assert (life.record.served_us, life.n_freed) == (1000, 1)
    life.hear("1 aborted")
    assert (life.record.served_us, life.n_freed) == (2000, 2)
    assert [end.reason for end in life.record.ends] == ["cancelled", "cancelled"]


def test_an_engine_that_answers_an_abort_at_once_is_heard() -> None:
    """Its last word comes while the choice is being taken back."""
    life = Life()
    life.engine._abort = lambda request_id: life.hear(f"{request_id - 1} aborted")  # type: ignore[method-assign]
    for submission in life.engine.submissions:
        submission.handle._abort = life.engine._abort
    for what in [*OPEN, "leave"]:
        life.hear(what)
    assert (life.stages, life.stands, life.n_freed) == ((OVER, OVER), "ended", 2)


@pytest.mark.parametrize("name", EVENTS)
def test_what_is_done_with_an_event_depends_on_the_stage_alone(name: str) -> None:
    """The first word may be a refusal; the last one of what was taken back is its Finish."""
    event = EVENTS[name](1)
    refuses = name in ("refused", "lost", "stopping", "quarantined")
    assert is_refusal(event) == refuses
    assert {stage: act_on(stage, event) for stage in Stage} == {
        ASKED: Act.REFUSE if refuses else Act.KEEP,
        TAKEN: Act.KEEP,
        LIVE: Act.WRITE,
        BACK: Act.SETTLE if isinstance(event, Finish) else Act.IGNORE,
        OVER: Act.IGNORE,
    }
