"""What the witness lets pass and what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from poise.scheduler.request import Started
from poise.wire import messages as wire
from poise.wire import to_engine
from tests.sim.checking.witness import Reference, Witness

PROMPT = [5, 6, 7]
GREEDY = to_engine.SamplingParams(temperature=0.0, ignore_eos=True)


def right_tokens(n: int) -> list[wire.Token]:
    reference = Reference.of_prompt(PROMPT)
    return [wire.Token(1, reference.next(GREEDY, 1000, 0) or 0) for _ in range(n)]


def finish(reason: str = "length", n_output: int = 2, detail: str = "") -> wire.Finish:
    return wire.Finish(1, reason, len(PROMPT), n_output, 0, detail)


def step(
    starts: bool = False,
    tokens: Sequence[wire.Token] = (),
    finishes: Sequence[wire.Finish] = (),
    changes: Sequence[wire.Change] = (),
    computed: int | None = None,
) -> wire.Step:
    """`computed`: tokens of the prompt; all of them in the step in which it starts, if nothing is said."""
    n_tokens = len(PROMPT) * starts if computed is None else computed
    prefills = [wire.Prefill(1, n_tokens, 10, 0)] if n_tokens else []
    return wire.Step(1, [Started(1, 0, "short")] * starts, list(tokens), list(finishes), list(changes), prefills)


ACCEPTED = wire.Accepted(1, 1, 0)


def check(*messages: wire.ToGateway, timeout_ms: int = 0, aborted: bool = False, may_fail: bool = False) -> None:
    """Let a witness see a request of two tokens and what the engine says of it, a second after it was sent."""
    witness = Witness(n_vocab=1000, end_rate=0, may_fail=may_fail)
    witness.sent(to_engine.Submit(1, "a", "interactive", PROMPT, 2, GREEDY, queue_timeout_ms=timeout_ms), 0)
    if aborted:
        witness.sent(to_engine.Abort(1), 0)
    for message in messages:
        witness.heard(message, 1_000_000_000)


def test_right_lives_pass() -> None:
    """To the end, refused, aborted, expired, failed, paused in between."""
    check(ACCEPTED, step(True, right_tokens(2), [finish()]))
    check(wire.Refused(1, "queue_full", 1, 1, 0))
    check(ACCEPTED, step(True, right_tokens(1)), step(finishes=[finish("aborted", 1)]), aborted=True)
    check(ACCEPTED, step(finishes=[finish("expired", 0)]), timeout_ms=900)
    check(ACCEPTED, step(True), step(finishes=[finish("failed", 0, "broken")]), may_fail=True)
    paused, resumed = step(changes=[wire.Change(1, "swap")]), [wire.Change(1, "resume")]
    check(ACCEPTED, step(True, right_tokens(1)), paused, step(False, right_tokens(2)[1:], [finish()], resumed))


WRONG: dict[str, tuple[Sequence[wire.ToGateway], str]] = {
    "accepted twice": ([ACCEPTED, ACCEPTED], "accepted twice"),
    "refused later": ([ACCEPTED, wire.Refused(1, "queue_full", 1, 1, 0)], "after it had been accepted"),
    "ends twice": ([ACCEPTED, step(True, right_tokens(2), [finish(), finish()])], "has ended"),
    "goes on after its end": ([ACCEPTED, step(True, right_tokens(2), [finish()]), step(tokens=right_tokens(1))], "ended"),
    "never accepted": ([step(True)], "without having been accepted"),
    "starts twice": ([ACCEPTED, step(True), step(True)], "started twice"),
    "a prompt computed in part": ([ACCEPTED, step(True, right_tokens(1), computed=2)], "2 tokens were computed"),
    "a prompt computed twice": ([ACCEPTED, step(True), step(False, right_tokens(1), computed=1)], "4 tokens were"),
    "a prompt before its start": ([ACCEPTED, step(computed=3)], "before its start"),
    "computes while away": (
        [ACCEPTED, step(True, computed=1), step(computed=2, changes=[wire.Change(1, "swap")])],
        "it was preempted",
    ),
    "no start": ([ACCEPTED, step(tokens=right_tokens(1))], "before its start"),
    "another token": ([ACCEPTED, step(True, [wire.Token(1, 3)])], "undisturbed it is"),
    "too few": ([ACCEPTED, step(True, right_tokens(1), [finish(n_output=1)])], "ended after 1 tokens"),
    "miscounted": ([ACCEPTED, step(True, right_tokens(2), [finish(n_output=1)])], "it sent others"),
    "stops where the model does not": ([ACCEPTED, step(True, right_tokens(1), [finish("stop", 1)])], "goes on with"),
    "aborted by nobody": ([ACCEPTED, step(finishes=[finish("aborted", 0)])], "by nobody"),
    "expired without a timeout": ([ACCEPTED, step(finishes=[finish("expired", 0)])], "expired"),
    "failed without a fault": ([ACCEPTED, step(True, [], [finish("failed", 0, "x")])], "no fault of the runner"),
    "no such reason": ([ACCEPTED, step(True, right_tokens(2), [finish("bored")])], "no such reason"),
    "speaks while away": (
        [ACCEPTED, step(True), step(tokens=right_tokens(1), changes=[wire.Change(1, "pause")])],
        "while it was preempted",
    ),
}


def handed_on(output: int, *, readmitted: bool = True) -> to_engine.Submit:
    tokens = [t.token for t in right_tokens(2)[:output]]
    return to_engine.Submit(1, "a", "interactive", PROMPT, 2, GREEDY, output=tokens, readmitted=readmitted)


def witness_of(*messages: wire.ToGateway) -> Witness:
    witness = Witness(n_vocab=1000, end_rate=0, may_fail=False)
    witness.sent(to_engine.Submit(1, "a", "interactive", PROMPT, 2, GREEDY), 0)
    for message in messages:
        witness.heard(message, 1)
    return witness


def test_a_life_with_two_engines_passes() -> None:
    """Accepted and started by each, every token once."""
    witness = witness_of(ACCEPTED, step(True, right_tokens(1)))
    witness.sent(handed_on(1), 2)
    witness.heard(ACCEPTED, 2)
    witness.heard(step(True, right_tokens(2)[1:], [finish()], computed=len(PROMPT) + 1), 3)
    assert (witness.n_accepted, witness.n_ended, witness._open) == (1, 1, {})
    refused = witness_of()
    refused.sent(handed_on(0, readmitted=False), 2)
    refused.heard(wire.Refused(1, "queue_full", 1, 1, 0), 2)
    assert refused._open == {}


def test_wrong_lives_with_two_engines_do_not() -> None:
    """Refused, handed on with other tokens, given a token twice, expired, given up by nobody."""
    with pytest.raises(AssertionError, match="handed on with 0 tokens"):
        witness_of(ACCEPTED, step(True, right_tokens(1))).sent(handed_on(0), 2)
    with pytest.raises(AssertionError, match="accepted or not"):
        witness_of(ACCEPTED).sent(handed_on(0, readmitted=False), 2)
    wrong: dict[str, wire.ToGateway] = {
        "after it had been accepted": wire.Refused(1, "queue_full", 1, 1, 0),
        "undisturbed it is": step(True, right_tokens(1), computed=len(PROMPT) + 1),
        "before its start": step(False, right_tokens(2)[1:]),
    }
    for complaint, message in wrong.items():
        witness = witness_of(ACCEPTED, step(True, right_tokens(1)))
        witness.sent(handed_on(1), 2)
        if not isinstance(message, wire.Refused):
            witness.heard(ACCEPTED, 2)
        with pytest.raises(AssertionError, match=complaint):
            witness.heard(message, 2)
    with pytest.raises(AssertionError, match="nobody had aborted it"):
        witness_of(ACCEPTED).given_up(1)


def test_a_held_request_must_be_silent() -> None:
    """From the moment at which the engine was told, until it is told otherwise."""
    witness = witness_of(ACCEPTED, step(True, right_tokens(1)))
    witness.sent(to_engine.Hold(1, "pause"), 2)
    with pytest.raises(AssertionError, match="while its reader was behind"):
        witness.heard(step(tokens=right_tokens(2)[1:]), 3)
    with pytest.raises(AssertionError, match="its reader is behind"):
        witness.heard(step(changes=[wire.Change(1, "resume")]), 3)
    witness.sent(to_engine.Hold(1, "run"), 4)
    witness.heard(step(changes=[wire.Change(1, "resume")]), 5)


@pytest.mark.parametrize(("messages", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_wrong_lives_do_not(messages: Sequence[wire.ToGateway], complaint: str) -> None:
    """Each rule, broken once."""
    with pytest.raises(AssertionError, match=complaint):
        check(*messages)
