"""What is kept of live requests over the death of an engine, message by message."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import dataclass, field

import msgspec
import pytest
from msgspec.structs import replace

from poise.gateway.supervision.blame import Cause, Death
from poise.gateway.supervision.engine import ENGINE_LOST, QUARANTINED
from poise.gateway.supervision.handover import Handover
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import Queued, RequestClass, Started
from poise.wire import messages as wire
from poise.wire import to_engine
from tests.gateway.mailbox import Mailbox

SECRET = 4711
"""A token id that must not get into a report."""


def died(*ids: int, code: int = -signal.SIGSEGV) -> Death:
    return Death(Cause.CRASH, code, "the engine died", ids)


@dataclass
class Desk:
    """A handover, what it sends, and short words for what an engine says."""

    recoveries_max: int = 5
    sent: list[to_engine.ToEngine] = field(default_factory=list)
    metrics: RecoveryMetrics = field(default_factory=RecoveryMetrics)

    def __post_init__(self) -> None:
        self.handover = Handover(self.sent.append, self.metrics, self.recoveries_max)
        self.handover.hand_over()

    def add(self, request_id: int = 1, *, accepted: bool = True, started: bool = True) -> Mailbox:
        submit = to_engine.Submit(
            request_id, "t", "interactive", [SECRET, 2, 3], 50, to_engine.SamplingParams(), queue_timeout_ms=9
        )
        handle = Mailbox(self.handover.add(submit, f"req-{request_id}"))
        if accepted:
            self.handover.answered(wire.Accepted(request_id, 1, 0))
        if accepted and started:
            self.start(request_id, n_cached=2)
        return handle

    def start(self, request_id: int, n_cached: int = 0) -> None:
        self.handover.step(wire.Step(1, [Started(request_id, 5, "short", n_cached)], [], []))

    def tokens(self, request_id: int, *tokens: int) -> None:
        for token in tokens:
            self.handover.step(wire.Step(1, [], [wire.Token(request_id, token)], []))

    def finish(self, request_id: int, reason: str = "stop", n_cached: int = 0) -> None:
        self.handover.step(wire.Step(1, [], [], [wire.Finish(request_id, reason, 3, 1, 1, n_cached=n_cached)]))

    def recover(self, *ids: int, n_cached: int = 0) -> list[to_engine.ToEngine]:
        """Another engine takes up all live requests, which have been accepted. Returns what it was sent."""
        self.sent.clear()
        self.handover.hand_over()
        for request_id in ids:
            self.handover.answered(wire.Accepted(request_id, 1, 0))
            self.start(request_id, n_cached)
        return list(self.sent)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def kinds(handle: Mailbox) -> list[str]:
    return [event.what if isinstance(event, wire.Change) else type(event).__name__ for event in handle.take()]


def last(handle: Mailbox) -> wire.Finish:
    event = handle.take()[-1]
    assert isinstance(event, wire.Finish)
    return event


def test_a_running_request_goes_on_where_it_was() -> None:
    """The next engine gets prompt and output; its reader sees a pause, and one of everything."""
    desk = Desk()
    handle = desk.add()
    desk.tokens(1, 10, 11)
    desk.handover.lose(died())
    (again,) = desk.recover(1, n_cached=2)
    assert isinstance(again, to_engine.Submit)
    assert (again.prompt, again.output, again.readmitted, again.suspect) == ([SECRET, 2, 3], [10, 11], True, False)
    assert (again.max_output, again.queue_timeout_ms) == (50, 9)
    desk.tokens(1, 12)
    desk.finish(1, n_cached=99)
    events = handle.take()
    assert [e.what if isinstance(e, wire.Change) else type(e).__name__ for e in events] == [
        *("Accepted", "Started", "Token", "Token", "lost", "recover", "Token", "Finish")
    ]
    changes = [event for event in events if isinstance(event, wire.Change)]
    assert changes[1].why == "3", "five tokens are known, two of them need no computing"
    assert isinstance(events[-1], wire.Finish)
    assert events[-1].n_cached == 2, "of the first start"
    assert desk.value("poise_recovered_requests_total", **{"class": "interactive"}) == 1
    assert desk.value("poise_recovered_tokens_total", **{"class": "interactive"}) == 3
    assert desk.value("poise_recovery_seconds_count", **{"class": "interactive"}) == 1


def test_order_is_kept_and_the_queue_is_readmitted() -> None:
    """Whoever waited goes on waiting; only who had no answer yet may still be refused."""
    desk = Desk()
    handles = [desk.add(1), desk.add(2, started=False), desk.add(3, accepted=False)]
    assert desk.handover.queued_by_account(RequestClass.INTERACTIVE) == {"t": 2}
    desk.handover.lose(died())
    again = desk.recover()
    assert [(m.request_id, m.readmitted) for m in again if isinstance(m, to_engine.Submit)] == [(1, True), (2, True), (3, False)]
    desk.handover.answered(wire.Accepted(2, 4, 7000))
    desk.handover.answered(wire.Refused(3, "queue_full", 1, 1, 1))
    assert kinds(handles[1]) == ["Accepted", "lost", "recover", "Queued"]
    assert kinds(handles[2]) == ["Refused"]
    desk.start(2)
    assert kinds(handles[1]) == ["Started"], "its first start is told"
    assert desk.value("poise_recovered_tokens_total", **{"class": "interactive"}) == 0


def test_an_engine_lost_while_loading_is_told_once() -> None:
    """One lost, one recover, however many engines it takes."""
    desk = Desk()
    handle = desk.add()
    for _ in range(3):
        desk.handover.lose(died())
    desk.recover(1)
    assert kinds(handle) == ["Accepted", "Started", "lost", "recover"]


def test_recoveries_are_bounded() -> None:
    """Then the request ends, the queued one as well."""
    desk = Desk(recoveries_max=2)
    handles = [desk.add(1), desk.add(2, started=False)]
    for _ in range(2):
        desk.handover.lose(died())
        desk.recover(1, 2)
    assert not any(handle.done for handle in handles)
    desk.handover.lose(died())
    assert [last(handle).reason for handle in handles] == [ENGINE_LOST] * 2
    assert desk.handover.n_live == 0


def test_an_engine_that_never_was_ready_is_held_against_nobody() -> None:
    """However many there are, as long as they come soon after each other; then it counts: nobody waits for ever."""
    desk = Desk(recoveries_max=2)
    handle = desk.add()
    desk.handover.lose(died(1))
    for _ in range(20):
        desk.handover.lose(died())
    assert not handle.done
    for _ in range(2):
        desk.handover.lose(died(), hopeless=True)
    assert last(handle).reason == ENGINE_LOST


def crowd(desk: Desk, n: int) -> list[Mailbox]:
    """So many live requests, under whom two engines died without a word of whom."""
    handles = [desk.add(i) for i in range(1, n + 1)]
    desk.handover.lose(died())
    desk.recover(*range(1, n + 1))
    desk.handover.lose(died())
    desk.sent.clear()
    desk.handover.hand_over()
    return handles


def submitted(desk: Desk) -> list[int]:
    return [message.request_id for message in desk.sent if isinstance(message, to_engine.Submit)]


def test_after_two_deaths_that_name_nobody_requests_come_one_by_one() -> None:
    """The next when a whole step was made with the one before; who comes meanwhile waits at the end."""
    desk = Desk()
    crowd(desk, 3)
    desk.add(9, accepted=False)
    assert submitted(desk) == [1]
    desk.handover.step(wire.Step(1, [], [], []))
    assert submitted(desk) == [1], "the engine has not said yet that it has it"
    for known in ([1, 2], [1, 2, 3], [1, 2, 3, 9], [1, 2, 3, 9]):
        desk.handover.answered(wire.Accepted(submitted(desk)[-1], 1, 0))
        desk.tokens(1, 7)
        assert submitted(desk) == known
    desk.add(10, accepted=False)
    assert submitted(desk)[-1] == 10, "all have proved themselves: nobody waits any more"


def test_who_kills_engines_in_a_way_that_names_nobody_is_found() -> None:
    """It is alone in the trial twice; the others lose fewer engines than they may."""
    desk = Desk()
    handles = crowd(desk, 4)
    for _ in range(2):
        for request_id in (1, 2):
            assert submitted(desk)[-1] == request_id
            desk.handover.answered(wire.Accepted(request_id, 1, 0))
            desk.tokens(request_id, 7)
        assert submitted(desk)[-1] == 3
        desk.handover.lose(died())
        desk.sent.clear()
        desk.handover.hand_over()
    assert last(handles[2]).reason == QUARANTINED
    assert not any(handle.done for handle in [handles[0], handles[1], handles[3]])
    assert [report.engine_request for report in desk.handover.quarantine.all()] == [3]


@pytest.mark.parametrize("why", ["abort", "pause", "hold", "refused"])
def test_a_trial_waits_for_nobody_who_is_not_computed(why: str) -> None:
    desk = Desk()
    crowd(desk, 2)
    if why == "abort":
        desk.finish(1, "aborted")
    elif why == "pause":
        desk.handover.controlled(wire.Controlled(1, "pause", "paused", ""))
    elif why == "hold":
        desk.handover.hold(1, "pause")
    else:
        desk.handover.answered(wire.Refused(1, "queue_full", 1, 1, 1))
    assert submitted(desk) == [1, 2]


def test_what_the_engine_does_not_have_yet_ends_here() -> None:
    """An abort of one that waits for its trial, and the end of the server."""
    desk = Desk()
    handles = crowd(desk, 3)
    desk.sent.clear()
    handles[1].abort()
    assert (last(handles[1]).reason, desk.sent) == ("aborted", [])
    desk.handover.end_all("server_stopping", "")
    assert [type(message).__name__ for message in desk.sent] == ["Abort"]
    assert last(handles[2]).reason == "server_stopping"


def test_without_recoveries_a_loss_ends_everything() -> None:
    """`recoveries_max = 0`."""
    desk = Desk(recoveries_max=0)
    handle = desk.add()
    desk.handover.lose(died())
    assert last(handle).reason == ENGINE_LOST


def test_aborted_requests_are_not_handed_over() -> None:
    """Neither those whose abort the engine took with it, nor those that were given up while there was none."""
    desk = Desk()
    before, meanwhile, stays = desk.add(1), desk.add(2), desk.add(3)
    before.abort()
    before.abort()
    assert desk.sent.count(to_engine.Abort(1)) == 1
    desk.handover.lose(died())
    meanwhile.abort()
    assert [last(handle).reason for handle in (before, meanwhile)] == ["aborted"] * 2
    assert [m.request_id for m in desk.recover() if isinstance(m, to_engine.Submit)] == [3]
    stays.abort()
    assert to_engine.Abort(3) in desk.sent


def test_pauses_and_holds_are_put_in_force_again() -> None:
    """An operator's pause and a reader that is behind: neither ends with the engine."""
    desk = Desk()
    desk.add()
    desk.handover.controlled(wire.Controlled(1, "pause", "paused"))
    desk.handover.hold(1, "swap")
    desk.handover.lose(died())
    desk.handover.hold(1, "pause")
    assert desk.recover()[1:] == [to_engine.Control(1, "pause"), to_engine.Hold(1, "pause")]
    desk.handover.controlled(wire.Controlled(1, "pause", "paused", "it is paused already"))
    desk.handover.controlled(wire.Controlled(1, "resume", "running"))
    desk.handover.hold(1, "run")
    desk.handover.lose(died())
    assert len(desk.recover()) == 1


def test_a_downgraded_request_stays_downgraded() -> None:
    """It comes back as background work."""
    desk = Desk()
    desk.add()
    desk.handover.step(wire.Step(1, [], [], [], [wire.Change(1, "downgrade", "operator")]))
    desk.handover.lose(died())
    (again,) = desk.recover()
    assert isinstance(again, to_engine.Submit)
    assert again.request_class == "background"


def test_who_has_all_its_tokens_ends_instead() -> None:
    """The engine died between the last token and the word that it was the last."""
    desk = Desk()
    handle = desk.add()
    desk.tokens(1, *range(50))
    desk.handover.lose(died())
    assert desk.recover() == []
    assert last(handle).reason == "length"


def test_a_refusal_of_what_was_accepted_ends_it() -> None:
    """It should not happen; if it does, nobody waits for ever."""
    desk = Desk()
    handle = desk.add()
    desk.handover.lose(died())
    desk.recover()
    desk.handover.answered(wire.Refused(1, "too_long", 1, 1, 1))
    assert last(handle).reason == ENGINE_LOST


def test_the_end_of_the_server_ends_everything() -> None:
    """The engine is told, and whoever was cancelled already stays so."""
    desk = Desk()
    handles = [desk.add(1), desk.add(2)]
    handles[1].abort()
    desk.handover.end_all("server_stopping", "")
    assert [last(handle).reason for handle in handles] == ["server_stopping", "aborted"]
    assert to_engine.Abort(1) in desk.sent
    assert desk.handover.n_live == 0


def test_a_killer_is_found_and_put_away(caplog: pytest.LogCaptureFixture) -> None:
    """Two suspects, then one of them alone: it is quarantined, with a report that shows nothing of it; the other goes on."""
    desk = Desk()
    killer, other = desk.add(1), desk.add(2)
    desk.tokens(1, SECRET, SECRET)
    desk.handover.lose(died(1, 2))
    assert [m.suspect for m in desk.recover(1, 2) if isinstance(m, to_engine.Submit)] == [True, True]
    with caplog.at_level(logging.ERROR):
        desk.handover.lose(died(1))
    assert last(killer).reason == QUARANTINED
    assert not other.done
    (report,) = desk.handover.quarantine.all()
    told = report
    assert (told.request_id, told.tenant, told.request_class, told.engine_request) == ("req-1", "t", "interactive", 1)
    assert (told.prompt_tokens, told.output_tokens, told.deaths, told.ended_by) == (3, 2, 2, "SIGSEGV")
    assert told.accepted_at <= told.quarantined_at
    (line,) = [record.getMessage() for record in caplog.records]
    assert json.loads(line.removeprefix("quarantined: ")) == msgspec.to_builtins(told)
    assert str(SECRET) not in line
    assert desk.value("poise_quarantined_total", **{"class": "interactive"}) == 1
    assert [m.suspect for m in desk.recover() if isinstance(m, to_engine.Submit)] == [True], "the other is not acquitted yet"


def test_eight_new_tokens_end_a_probation() -> None:
    """Counted from the handover; seven are not enough."""
    desk = Desk()
    desk.add()
    desk.tokens(1, *range(20))
    desk.handover.lose(died(1))
    desk.recover(1)
    desk.tokens(1, *range(7))
    desk.handover.lose(died())
    assert [m.suspect for m in desk.recover(1) if isinstance(m, to_engine.Submit)] == [True]
    desk.tokens(1, *range(8))
    desk.handover.lose(died())
    assert [m.suspect for m in desk.recover(1) if isinstance(m, to_engine.Submit)] == [False]


def test_nothing_is_held_against_requests_that_are_gone() -> None:
    """Ids of the engine's own work, and of requests that have just ended, are forgotten at once."""
    desk = Desk()
    desk.add(1)
    desk.finish(1)
    for _ in range(9):
        desk.handover.lose(died(-1))
        desk.handover.lose(died(1))
    assert not desk.handover.quarantine.all()
    assert not desk.handover._blame._held


def test_unknown_ids_are_nobody_s() -> None:
    """What an engine says of requests that have ended changes nothing."""
    desk = Desk()
    desk.handover.answered(wire.Accepted(9, 1, 0))
    desk.handover.waiting(Queued(9, 1, 0))
    desk.handover.controlled(wire.Controlled(9, "pause", "paused"))
    desk.start(9)
    desk.tokens(9, 1)
    desk.finish(9)
    assert desk.handover.n_live == 0


def test_the_kept_message_is_the_client_s_own() -> None:
    """What is handed over differs in what the recovery adds and in nothing else."""
    desk = Desk()
    desk.add()
    first = desk.sent[0]
    desk.handover.lose(died())
    (again,) = desk.recover()
    assert isinstance(again, to_engine.Submit)
    assert replace(again, output=[], readmitted=False, suspect=False) == first
