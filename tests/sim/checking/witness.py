"""What a client may rely on, checked message by message from outside the engine.

It knows what was asked and what was answered, and nothing of the scheduler:

1. Every request is accepted or refused, once and at once. An accepted one ends exactly once (invariant 2), and nothing of it
   is sent after that.
2. Every token is the one an undisturbed computation gives (invariant 10), however often the request was paused, swapped or
   computed again: the simulated model is a hash chain, so the reference is one more hash for each token.
3. An end has its reason: "length" with all tokens, or as many as the longest slot holds beside its prompt, "stop" where the model
   ends, "aborted" only if somebody asked for it, "expired" only after the timeout and before anything was computed, "failed"
   only where the runner was made to fail.
4. A paused request sends nothing until it goes on, and a held one nothing until its reader has caught up.
5. A request that was accepted survives its engine: the next one takes it, with exactly the tokens that were sent, and goes on
   with the token after them. It does not expire any more.
6. The chunks of a prompt that are sent add up: by the first token, all that it came with has been computed or was found, and
   each token once unless its cells were taken from it."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from poise.scheduler.request import Hold
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.changes import ChangeKind
from tests.sim.exact_runner import ECHO_TOKENS, ECHO_VOCAB


@dataclass(slots=True)
class Reference:
    """The simulated model, computed without batches, slots or steps. `state` has seen the prompt and `n_output` tokens."""

    state: int
    last: list[int]
    """The last tokens, which decide alone where the text echoes (`ExactRunner`)."""
    n_output: int = 0

    @classmethod
    def of_prompt(cls, prompt: list[int]) -> "Reference":
        return cls(crc32(np.asarray(prompt, "<i8").tobytes()), prompt[-ECHO_TOKENS:])

    def next(self, sampling: to_engine.SamplingParams, n_vocab: int, end_rate: int, echo: int = 0) -> int | None:
        """The next token, None where the answer ends. Modifies the state."""
        draw = self.state
        if echo and self.state % echo:
            draw = crc32(np.asarray(self.last, "<i8").tobytes())
        if sampling.temperature != 0:
            for part in (sampling.seed, 0 if echo else self.n_output):
                draw = crc32(part.to_bytes(8, "little", signed=True), draw)
        may_end = end_rate and not sampling.ignore_eos and self.n_output >= sampling.min_output
        if may_end and draw % end_rate == 0:
            return None
        token = 1 + draw % ((ECHO_VOCAB if echo else n_vocab) - 1)
        self.last = [*self.last, token][-ECHO_TOKENS:]
        self.state = crc32(token.to_bytes(8, "little", signed=True), self.state)
        self.n_output += 1
        return token


@dataclass(slots=True)
class _Case:
    submit: to_engine.Submit
    sent_ns: int
    reference: Reference
    accepted: bool = False
    started: bool = False
    aborted: bool = False
    away: bool = False
    """Paused, swapped, dropped or held."""
    held: bool = False
    """Its reader is behind."""
    readmitted: bool = False
    n_handed: int = 0
    """Tokens of output that it came to this engine with."""
    n_to_compute: int = 0
    """Of the tokens that it came with, by what its start said."""
    n_prefilled: int = 0
    lost_cells: bool = False
    """It was swapped or dropped: some may be computed again."""


class Witness:
    """Sees every message in both directions and asserts the rules in the module's text."""

    def __init__(self, *, n_vocab: int, end_rate: int, may_fail: bool, slot_cells: int = 1 << 30, echo: int = 0) -> None:
        """`slot_cells`: of the longest slot."""
        self.n_accepted = 0
        self.n_ended = 0
        self.n_tokens = 0
        self._n_vocab = n_vocab
        self._end_rate, self._echo = end_rate, echo
        self._may_fail = may_fail
        self._slot_cells = slot_cells
        self._open: dict[int, _Case] = {}
        """Requests that were delivered and have not ended."""

    def sent(self, message: to_engine.ToEngine, now_ns: int) -> None:
        """The engine was given a message."""
        match message:
            case to_engine.Submit() if message.request_id in self._open:
                self._handed_on(message)
            case to_engine.Submit():
                self._open[message.request_id] = _Case(message, now_ns, Reference.of_prompt(message.prompt))
            case to_engine.Abort() if message.request_id in self._open:
                self._open[message.request_id].aborted = True
            case to_engine.Hold() if message.request_id in self._open:
                self._open[message.request_id].held = message.hold != Hold.RUN

    def given_up(self, request_id: int) -> None:
        """It was aborted, and then the engine died: nobody hands it to another."""
        assert self._open.pop(request_id).aborted, f"request {request_id} was given up and nobody had aborted it"
        self.n_ended += 1

    def _handed_on(self, submit: to_engine.Submit) -> None:
        """Another engine has it from here on."""
        case, what = self._open[submit.request_id], f"request {submit.request_id}"
        was_accepted = case.accepted or case.readmitted
        assert submit.readmitted == was_accepted, f"{what}: it was accepted or not, and now otherwise"
        assert len(submit.output) == case.reference.n_output, f"{what} is handed on with {len(submit.output)} tokens"
        case.readmitted = submit.readmitted
        case.accepted = case.started = case.away = case.held = case.lost_cells = False
        case.n_prefilled, case.n_handed = 0, case.reference.n_output

    def heard(self, message: wire.ToGateway, now_ns: int) -> None:
        """The engine sent a message. It is right, or this asserts."""
        match message:
            case wire.Accepted():
                case = self._case(message.request_id, "accepted")
                assert not case.accepted, f"request {message.request_id} was accepted twice"
                case.accepted = True
                self.n_accepted += not case.readmitted
            case wire.Refused():
                case = self._case(message.request_id, f"refused ({message.reason})")
                accepted = case.accepted or case.readmitted
                assert not accepted, f"request {message.request_id} was refused after it had been accepted"
                del self._open[message.request_id]
            case wire.Step():
                self._step(message, now_ns)

    def _step(self, step: wire.Step, now_ns: int) -> None:
        for start in step.starts:
            case = self._case(start.request_id, "started")
            assert case.accepted, f"request {start.request_id} started without having been accepted"
            assert not case.started, f"request {start.request_id} started twice"
            n_known = len(case.submit.prompt) + case.reference.n_output
            assert 0 <= start.n_cached < n_known, f"{start}: the last known token is always computed"
            case.started, case.away, case.n_to_compute = True, False, n_known - start.n_cached
        for change in step.changes:
            case = self._case(change.request_id, change.what)
            if change.what != ChangeKind.DOWNGRADE:
                case.away = change.what != ChangeKind.RESUME
            case.lost_cells |= change.what in (ChangeKind.SWAP, ChangeKind.DROP)
        ended = {finish.request_id for finish in step.finishes}
        for change in step.changes:  # all of them tell where it stands now, not one
            case = self._open[change.request_id]
            goes_on = not case.away and change.what != ChangeKind.DOWNGRADE
            assert not (goes_on and case.held) or change.request_id in ended, f"{change}: its reader is behind"
        for prefill in step.prefills:
            self._prefill(prefill)
        for token in step.tokens:
            self._token(token)
        for finish in step.finishes:
            self._finish(finish, now_ns)

    def _prefill(self, prefill: wire.Prefill) -> None:
        case = self._case(prefill.request_id, "computed some of its prompt")
        assert case.started, f"{prefill}: before its start"
        assert not case.away, f"{prefill}: it was preempted"
        assert not case.held, f"{prefill}: its reader is behind"
        assert prefill.n_tokens > 0, f"{prefill}: nothing was computed"
        case.n_prefilled += prefill.n_tokens

    def _token(self, token: wire.Token) -> None:
        case, what = self._case(token.request_id, "sent a token"), f"request {token.request_id}"
        assert case.started, f"{what} sent a token before its start"
        assert not case.away, f"{what} sent a token while it was preempted"
        assert not case.held, f"{what} sent a token while its reader was behind"
        n_output = case.reference.n_output
        if n_output == case.n_handed:
            done, due = case.n_prefilled, case.n_to_compute
            # The last of the output that it came with may be left for a step of its own, which is a decode like any other.
            least = due - 1 if case.n_handed else due
            # Whose cells were given up may find more of its prompt kept by then than at its start.
            is_right = case.lost_cells or (least <= done and (done <= due or self._may_fail))
            assert is_right, f"{what}: {done} tokens were computed before its first one, {due} were due"
        expected = case.reference.next(case.submit.sampling, self._n_vocab, self._end_rate, self._echo)
        assert token.token == expected, f"{what}: token {n_output} is {token.token}; undisturbed it is {expected}"
        self.n_tokens += 1

    def _finish(self, finish: wire.Finish, now_ns: int) -> None:
        case = self._case(finish.request_id, f"ended ({finish.reason})")
        del self._open[finish.request_id]
        self.n_ended += 1
        submit, what = case.submit, f"request {finish.request_id} ({finish.reason})"
        assert case.accepted, f"{what} ended without having been accepted"
        assert finish.n_output == case.reference.n_output, f"{what} counts {finish.n_output} tokens; it sent others"
        assert finish.n_prompt == len(submit.prompt), f"{what} counts {finish.n_prompt} prompt tokens"
        assert finish.n_output <= submit.max_output, f"{what} has more tokens than were allowed"
        match finish.reason:
            case "length":
                most = min(submit.max_output, self._slot_cells + 1 - finish.n_prompt)
                assert finish.n_output == most, f"{what} ended after {finish.n_output} tokens, not {most}"
            case "stop":
                token = case.reference.next(submit.sampling, self._n_vocab, self._end_rate, self._echo)
                assert token is None, f"{what} ended where the model goes on with {token}"
            case "aborted":
                assert case.aborted, f"{what} was aborted by nobody"
            case "expired":
                waited_ms = (now_ns - case.sent_ns) / 1e6
                assert 0 < submit.queue_timeout_ms <= waited_ms + 1, f"{what} after {waited_ms:.0f} ms"
                assert not case.started, f"{what} had been started"
                assert not case.held, f"{what} while its reader was behind"
                assert not case.readmitted, f"{what} after it had been handed to another engine"
            case "failed":
                assert self._may_fail, f"{what} with no fault of the runner: {finish.detail}"
                assert finish.detail, f"{what} without a word about why"
            case _:
                raise AssertionError(f"{what}: no such reason")

    def _case(self, request_id: int, what: str) -> _Case:
        case = self._open.get(request_id)
        assert case is not None, f"request {request_id} {what}, but it has ended or never was"
        return case
