"""The simulated world in which things go wrong, and whose every message passes the witness."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from poise.scheduler.power import FULL_PPM, Background
from poise.scheduler.request import Control, Hold
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.changes import ChangeKind
from poise.wire.to_engine import Accounts
from poise_lab.scenarios.model import RequestStream, Scenario
from poise_lab.sim.runner import VirtualClock
from poise_lab.sim.simulate import Options
from poise_lab.sim.world import NextRequest, World
from tests.sim.checking.faults import UNLIMITED, Arriving, Faults, Live
from tests.sim.checking.witness import Witness


@dataclass(slots=True)
class _Told:
    """What an engine was told of a request in flight, for the next one."""

    submit: to_engine.Submit
    accepted: bool = False
    aborted: bool = False


class CheckedWorld(World):
    """When the engine has died, `engine_lost` makes what the gateway would tell the next one the first thing that it hears."""

    def __init__(
        self, scenario: Scenario, seed: int, clock: VirtualClock, options: Options, faults: Faults, witness: Witness
    ) -> None:
        self._power = UNLIMITED
        super().__init__(scenario, seed, clock, options.template, options.costs.way_us, options.power)
        self._faults = faults
        self._witness = witness
        self._told: dict[int, _Told] = {}
        self._held: dict[int, None] = {}
        """Requests whose last control was a pause."""
        self._stalled: dict[int, to_engine.Hold] = {}
        """Requests whose reader is behind, and what the engine was sent of it."""
        self._template: to_engine.Template | None = None
        self._accounts = Accounts(0, [])

    def engine_lost(self, suspects: Container[int]) -> list[wire.Finish]:
        """The engine is gone. Every live request goes to the next one in its order, with what was received of it; those whose
        abort it took with it have ended, and are returned. `suspects` were being computed."""
        self._clock.advance(self._faults.restart_ns())
        now_ns, ended = self._clock.now_ns(), list[wire.Finish]()
        self._at(0, self._accounts)
        self._at(0, self._power)
        if self._template is not None:
            self._at(0, self._template)
        for request_id, sent in list(self._in_flight.items()):
            n_prompt, output, told = sent.record.n_prompt, list(sent.record.tokens), self._told[request_id]
            if told.aborted:
                self._witness.given_up(request_id)
                self._end(request_id, "aborted", now_ns)
                ended.append(wire.Finish(request_id, "aborted", n_prompt, len(output), 0))
                continue
            is_suspect = request_id in suspects
            self._at(0, replace(told.submit, output=output, readmitted=told.accepted, suspect=is_suspect))
            if request_id in self._held:
                self._at(0, to_engine.Control(request_id, Control.PAUSE))
            if request_id in self._stalled:
                self._at(0, self._stalled[request_id])
        return ended

    def stop(self) -> None:
        """Nothing more goes wrong, either."""
        super().stop()
        self._faults.stop()

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        self._clock.advance(self._faults.clock_jump_ns(self._clock.now_ns()))
        self._strike()
        if block and not self._is_due():
            self._wait(wait_until_ns)
            self._strike()
        return list(self._due())

    def send(self, message: wire.ToGateway) -> None:
        self._witness.heard(message, self._clock.now_ns())
        match message:
            case Accounts():
                self._accounts = message
            case wire.Accepted():
                self._told[message.request_id].accepted = True
            case wire.Step():
                for change in message.changes:
                    if change.what == ChangeKind.DOWNGRADE:
                        told = self._told[change.request_id]
                        told.submit = replace(told.submit, request_class="background")
        super().send(message)

    def _next_ns(self, wait_until_ns: int | None) -> int | None:
        """Also the next strike, while there is something that it can strike."""
        limits = self._power.limits
        pauses = limits.background is not Background.RUN or (limits.duty_ppm < FULL_PPM and wait_until_ns is not None)
        if self._in_flight and not (self._held or self._stalled or pauses):  # else all of it may stand behind something paused
            raise AssertionError(f"the engine rests while requests {list(self._in_flight)[:10]} could run")
        next_ns, strikes_ns = super()._next_ns(wait_until_ns), self._faults.next_ns
        first = list(self._in_flight)[:10]
        assert next_ns is not None or not first, f"requests {first} wait for ever: nothing will happen any more"
        return min(next_ns, strikes_ns) if next_ns is not None and first and strikes_ns is not None else next_ns

    def _strike(self) -> None:
        """What the faults that are due do becomes moments like any others."""
        next_ns, now_ns = self._faults.next_ns, self._clock.now_ns()
        if next_ns is None or next_ns > now_ns:
            return
        live = [Live(i, sent.record.tenant, len(sent.record.tokens)) for i, sent in self._in_flight.items()]
        for delay_ns, what in self._faults.strikes(now_ns, live):
            if isinstance(what, Arriving):
                self._at(now_ns + delay_ns, NextRequest(RequestStream(what.client, 0, iter(())), what.planned))
            else:
                self._at(now_ns + delay_ns, what)

    def _due(self) -> Iterator[to_engine.ToEngine]:
        for message in super()._due():
            self._remember(message)
            self._witness.sent(message, self._clock.now_ns())
            yield message

    def _remember(self, message: to_engine.ToEngine) -> None:
        """What must be known of it when the engine dies, and to tell whether it may rest."""
        match message:
            case to_engine.Submit(request_id) if request_id not in self._told:
                self._told[request_id] = _Told(message)
            case to_engine.Control(request_id, Control.PAUSE) if request_id in self._in_flight:
                self._held[request_id] = None
            case to_engine.Control(request_id, Control.RESUME):
                self._held.pop(request_id, None)
            case to_engine.Hold(request_id, hold) if request_id in self._in_flight and hold != Hold.RUN:
                self._stalled[request_id] = message
            case to_engine.Hold(request_id, Hold.RUN):
                self._stalled.pop(request_id, None)
            case to_engine.Abort(request_id) if request_id in self._in_flight:
                self._told[request_id].aborted = True
            case to_engine.Template():
                self._template = message
            case to_engine.Power():
                self._power = message
            case to_engine.Erase():
                self._accounts = self._accounts.without(message.tenant)

    def _submit(self, request: NextRequest, when_ns: int) -> to_engine.Submit:
        return replace(super()._submit(request, when_ns), queue_timeout_ms=self._faults.queue_timeout_ms())

    def _end(self, request_id: int, outcome: str, now_ns: int) -> None:
        self._held.pop(request_id, None)
        self._stalled.pop(request_id, None)
        self._told.pop(request_id, None)
        super()._end(request_id, outcome, now_ns)
