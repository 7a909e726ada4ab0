"""Why a request was slow: the sentences and the verdict, for lives whose times the test has set."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from poise.gateway.explain.facts import ExplanationFigures, Facts, Weather
from poise.gateway.explain.neighbours import NEIGHBOURS_MAX, SlotLimits
from poise.gateway.explain.words import sentences_of, verdict_of
from poise.gateway.models.local.refusals import queue_timeout
from poise.gateway.records.changes import RequestState
from poise.gateway.records.following import Stop
from poise.gateway.records.values import Bill
from tests.gateway.lives import SECRET, Life, facts, holder


def waited(until_s: float = 8.0, **arguments: Any) -> Life:
    """One that waited for its slot from 0.1 s on, and then had its answer at once."""
    life = Life(**arguments).queued(0.08, position=3, eta_ms=6000).started(until_s + 0.2, cached=60)
    return life.prefill(until_s + 0.2, 40, 0.2, beside=7).tokens(until_s + 0.2, until_s + 0.3, until_s + 0.4).ended(9)


def all_told(known: Facts) -> str:
    """Everything that is said of it, after a look at its figures."""
    figures = msgspec.json.encode(known.figures)
    msgspec.json.decode(figures, type=ExplanationFigures)
    return "\n".join([verdict_of(known) or "", *sentences_of(known), figures.decode()])


FULL = [*[holder(f"b{i}", 0.0, 7.9) for i in range(5)], holder("j", 0.0, 8.0, "b", "background")]
OWN = [holder(f"own{i}", 0.0, 7.95, "a") for i in range(2)]


def test_waiting_for_slots_is_told_with_who_held_them() -> None:
    """The verdict names the pool, and the classes and tenants of the holders; ids of the caller's own."""
    known = facts(waited(), [*FULL, *OWN])
    assert verdict_of(known) == (
        "Most of its 8.2 s to the first token was waiting for a slot (7.9 s): 8 of the 8 slots of pool short were held, "
        "5 by interactive requests of other tenants, 2 by interactive requests of the same tenant (own0, own1) and "
        "1 by a background request of another tenant."
    )
    told = sentences_of(known)
    assert told[0] == "It is a request of class interactive and tenant a, with 100 prompt tokens."
    assert told[1] == (
        "It came to place 3 of its class's queue, where it was to wait about 6.0 s, and waited 7.9 s for its slot in pool short."
    )
    assert (
        "Of the wait, for 7.8 s every slot of the pool was held and for 7.8 s class interactive held as many as it may "
        "(6 of the pool)."
    ) in told
    figures = known.figures.queue
    assert figures is not None
    assert (figures.slots, figures.slots_held, figures.waited_ms, figures.estimate_ms) == (8, 8, 7920, 6000)
    assert [(g.class_, g.same_tenant, g.requests, g.slots) for g in figures.others] == [
        ("interactive", False, 5, 5),
        ("interactive", True, 2, 2),
        ("background", False, 1, 1),
    ]
    assert figures.others[1].prompt_tokens == 0, "their prompts were computed before it was queued"
    assert figures.others[1].output_tokens == 2 * 79


def test_an_operator_is_told_all_ids_and_others_only_their_own() -> None:
    """Of other tenants there are numbers, not names; of nobody there is a word of text."""
    tenants = all_told(facts(waited(), [*FULL, *OWN], viewer="a"))
    operators = all_told(facts(waited(), [*FULL, *OWN], viewer=None))
    for other in FULL:
        assert other.record.response_id not in tenants.replace("it", "").replace("object", "") or other is FULL[-1]
        assert f'"{other.record.response_id}"' in operators
    assert '"j"' not in tenants
    for told in (tenants, operators):
        assert SECRET not in told
        assert "tenant b" not in told


def test_slots_that_were_taken_later_are_the_reason_as_well() -> None:
    """Free slots when it came are not what it waited for."""
    late = [holder(f"l{i}", 1.0, 7.9) for i in range(8)]
    assert (verdict_of(facts(waited(), late)) or "").endswith(
        ": for 6.9 s all 8 slots of pool short were held, by 8 interactive requests of other tenants."
    )


def test_parts_of_chunks_that_are_kept_as_one_are_told_as_such() -> None:
    """What falls into a span of time of them is an estimate."""
    other = Life("o", "b").queued(0).started(0).prefill(4, 800, 8.0, chunks=10, until_s=12).tokens(12.1).ended(13)
    told = sentences_of(facts(waited(), [other]))
    assert any("others got about 4" in said and "prompt tokens" in said for said in told)


def test_a_class_or_a_tenant_at_its_limit_is_the_reason() -> None:
    """Where slots were left, which of the limits was reached."""
    two = [holder(f"own{i}", 0.0, 7.95, "a") for i in range(2)]
    by_class = verdict_of(facts(waited(), two, limits=SlotLimits("short", 8, 2)))
    assert by_class is not None
    assert "class interactive held the 2 slots of pool short that it may hold; in use were 2, 2 by inter" in by_class
    by_tenant = verdict_of(facts(waited(), two, limits=SlotLimits("short", 8, 8, 2)))
    assert by_tenant is not None
    assert by_tenant.endswith(": its tenant ran as many requests at once as it may (2).")


def test_without_a_reached_limit_the_samples_say_what_limited_the_server() -> None:
    """And where they say nothing, nothing is claimed."""
    weather = Weather({"compute": 0.9, "none": 0.1}, ("normal", "busy"))
    known = facts(waited(), weather=weather)
    assert (verdict_of(known) or "").endswith(": the server's limit was compute for 90 % of that time.")
    assert "What limited the server in that time: compute 90 % and nothing 10 %." in sentences_of(known)
    assert "The server's level in that time was normal then busy." in sentences_of(known)
    assert "cannot be told" in (verdict_of(facts(waited())) or "")


def test_a_host_that_was_busy_with_something_else_is_told() -> None:
    """By how much longer than predicted the passes took; a little longer is nothing."""
    slow, usual = Weather({"compute": 1.0}, ("normal",), 3.14), Weather({"compute": 1.0}, ("normal",), 1.2)
    said = "The engine's passes took up to 3.1 times as long as predicted in that time."
    assert said in sentences_of(facts(waited(), weather=slow))
    assert not [text for text in sentences_of(facts(waited(), weather=usual)) if "predicted" in text]
    life = Life().queued(0.1).started(0.1).tokens(0.2, 0.22, 0.24, 0.26, 3.3, 3.32).ended(3.4)
    assert "In that gap, the engine's passes took up to 3.1 times as long as predicted." in sentences_of(
        facts(life, weather=slow)
    )


def test_a_long_prompt_is_told_with_its_rate_and_what_was_in_its_passes() -> None:
    """Computed and cached tokens, chunks, and the time that went by without a chunk of it."""
    life = Life().queued(0.1).started(0.6, cached=60)
    for i in range(4):
        life.prefill(0.6 + i, 100, 0.5, beside=7)
    stopped = Life().queued(0.1).started(0.6).prefill(0.6, 100, 0.5).at(1, "stall").at(2, "resume").prefill(2.6, 100, 0.5)
    assert "200 tokens in 2 chunks, in 2.5 s (of which it was stopped for 1.0 s), 133 tokens a second" in (
        verdict_of(facts(stopped.tokens(2.6).ended(3))) or ""
    )
    life.tokens(3.6).ended(4, "length")
    known = facts(life, [holder("b", 0.0, 5.0)])
    assert verdict_of(known) == (
        "Most of its 3.6 s to the first token was computing its prompt: 400 tokens in 4 chunks, in 3.5 s, 114 tokens a second "
        "(60 more were cached); the same passes computed 28 tokens of others."
    )
    passes = "The passes with its chunks took 2.0 s; 1.5 s passed without one. Others got 36 output tokens meanwhile."
    assert passes in sentences_of(known)
    assert "Its first token came 3.6 s after its arrival." in sentences_of(known)


def test_the_longest_gap_is_told_with_what_happened_in_it() -> None:
    """A swap for another request that came, and a long chunk of somebody else's prompt."""
    life = Life().queued(0).started(0.1).prefill(0.1, 40).tokens(0.2, 0.3, 0.4, 0.5).at(0.56, "swap").at(3.46, "resume")
    life.tokens(3.6, 3.7).ended(3.8)
    heavy = Life("h", "b", "background", 0.5).queued(0.51).started(0.56).prefill(1.4, 512, 0.8).tokens(1.5).ended(3)
    known = facts(life, [heavy])
    assert verdict_of(known) == (
        "Its longest gap between two tokens was 3.1 s: for 2.9 s its KV cells were in host memory and it had no slot, "
        "a prompt chunk of 512 tokens of a background request of another tenant was computed in a pass of 800 ms and "
        "others got 512 prompt tokens and 1 output token in all."
    )
    assert (
        "It was swapped to host memory 560 ms after its arrival, for 2.9 s, so that another request could have its slot "
        "(at that moment a background request of another tenant got one)."
    ) in sentences_of(known)
    decode = known.figures.decode
    assert decode is not None
    assert decode.longest_gap.after_tokens == 4


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("pause", "for 1.0 s an operator had paused it"),
        ("stall", "for 1.0 s it was held because its reader was behind"),
        ("drop", "for 1.0 s its KV cells had been given up and it had no slot"),
        ("lost", "for 1.0 s its engine had died and no other one had it yet"),
    ],
)
def test_every_way_to_stop_has_its_words(first: str, told: str) -> None:
    """In the gap and among the stops; what was computed again is counted."""
    life = Life().queued(0).started(0.1).prefill(0.1, 40).tokens(0.2, 0.3, 0.4, 0.5).at(1, first)
    if first == "lost":
        life.at(2, "recover", why="44")
    else:
        life.at(2, "resume")
    if first in ("drop", "lost"):
        life.prefill(2.5, 44, 0.4)
    known = facts(life.tokens(2.6, 2.7))
    verdict = verdict_of(known) or ""
    assert told in verdict
    assert ("44 tokens of its own were computed again" in verdict) == (first in ("drop", "lost"))
    assert [stop.what for stop in known.figures.stops] == [first]
    assert known.figures.recomputed_tokens == (44 if first == "lost" else 0)


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("class", "so that an interactive request could have its slot"),
        ("tenant", "so that a tenant that had been served less could have its slot"),
        ("compute", "because its tenant had been served far more than one that waited for compute"),
        ("turn", "because its turn was over and other background work waited"),
        ("limit", "because as many ran as may: of its tenant, or of its class's heavy prompts"),
        ("outgrown", "because its answer had filled its slot and goes on in a longer one"),
    ],
)
@pytest.mark.parametrize("what", ["swap", "drop"])
def test_the_engine_says_why_it_took_a_slot(what: str, why: str, told: str) -> None:
    """In a sentence, and in the figures as it was told."""
    life = Life().queued(0).started(0.1).prefill(0.1, 40).tokens(0.2).at(1, what, why=why).at(2, "resume").tokens(2.1)
    known = facts(life)
    assert any(f"for 1.0 s, {told}." in said for said in sentences_of(known))
    assert [(stop.what, stop.why) for stop in known.figures.stops] == [(what, why)]


def test_who_is_swapped_while_held_did_not_lose_its_slot_to_the_scheduler_alone() -> None:
    """Its reader, or an operator, had stopped it before; nobody else is blamed."""
    life = Life().queued(0).started(0.1).tokens(0.2).at(1, "stall").at(2, "swap").at(5, "resume").tokens(5.1)
    other = Life("o", "b", arrived_s=1.5).queued(1.6).started(2.0)
    known = facts(life, [other])
    assert [stop.kept_by for stop in known.figures.stops] == ["reader", "reader"]
    assert known.started == [[], []]
    assert "after its reader had fallen behind" in sentences_of(known)[-2]


ENDED = {
    "stop": "the model ended its answer, or a stop string was found",
    "length": "its allowance of output was used up",
    "cancelled": "it was cancelled",
    "reader_timeout": "its client took nothing",
    "engine_lost": "the engine died under it",
    "quarantined": "engines died computing it",
    "server_stopping": "the server was stopped",
    "failed": "the engine could not compute it",
}


@pytest.mark.parametrize("outcome", ENDED)
def test_every_end_says_what_it_means(outcome: str) -> None:
    """A bad one is the verdict."""
    known = facts(Life().queued(0).started(0.1).prefill(0.1, 40).tokens(0.2, 0.3).ended(0.4, outcome))
    assert ENDED[outcome] in sentences_of(known)[-1]
    assert verdict_of(known) == (None if outcome in ("stop", "length") else sentences_of(known)[-1])


def test_ends_without_an_answer() -> None:
    """One that waited too long, one whose client left, and one that was refused."""
    expired = Life(queue_timeout_ms=2000).queued(0.1)
    expired.record.failure = queue_timeout(2.0, 1.0)
    assert "longer for a slot than its queue_timeout of 2.0 s" in (verdict_of(facts(expired.ended(2.1, "expired"))) or "")
    left = Life().queued(0).started(0.1).ended(1, "cancelled")
    left.record.stopped_by = Stop.LEFT
    assert (verdict_of(facts(left)) or "").endswith(": its client left.")
    refused = Life()
    refused.record.failure, refused.record.is_open = queue_timeout(2.0, 1.0), False
    assert "It was refused after 1.0 s and 0 tokens, with the error queue_timeout." in all_told(
        facts(refused.ended(1, "cancelled"))
    )


def test_what_lives_is_told_as_it_stands() -> None:
    """In the queue, in its prompt, between tokens; nothing is said to be over."""
    queued = Life().queued(0.5, position=2, eta_ms=4000)
    told = all_told(facts(queued, FULL, now_s=3.0, limits=SlotLimits()))
    assert "has waited 2.5 s without a slot" in told
    assert "It is queued, 3.0 s after its arrival, with 0 tokens so far." in told
    assert "Most of the 3.0 s so far was waiting for a slot (2.5 s)" in told
    begun = queued.started(3.0)
    begun.record.choices[0].state = RequestState.RUNNING
    told = all_told(facts(begun, now_s=9.0))
    assert "It has its slot, and no chunk of its prompt has been computed." in told
    assert "No token of it has come yet." in told
    assert "It is running, 9.0 s after its arrival" in told


def test_nothing_stands_out_of_a_quick_request() -> None:
    """Then there is no verdict, and the sentences are few."""
    known = facts(Life().queued(0).started(0.02).prefill(0.02, 40, 0.02).tokens(0.02, 0.06, 0.1).ended(0.11))
    assert verdict_of(known) is None
    assert len(sentences_of(known)) <= 6


def test_cost_and_what_is_not_known() -> None:
    """The share of the engine's time; and each way in which something may be missing is said."""
    life = waited()
    life.record.served_us = 900_000
    assert "900 ms of the engine's computing were charged to it, 10 % of the 9.0 s that it lived." in sentences_of(facts(life))
    crowd = [holder(f"c{i}", 1.0, 1.2) for i in range(NEIGHBOURS_MAX + 3)]
    told = sentences_of(facts(life, crowd, forgotten_s=5.0))
    assert "Some requests of that time are no longer kept, so there may have been more than is said here." in told
    assert "3 requests more were there that were not looked at, so counts are the least there were." in told
    assert not facts(life, forgotten_s=-1.0).figures.others_missing
    lost = Life().queued(0).started(0.1).tokens(0.2).at(1, "lost").at(2, "recover", why="7").tokens(2.1).ended(3)
    lost.record.served_us = 5
    assert "What it cost is not known: the engine that was lost did not tell." in sentences_of(facts(lost))


def test_a_summary_and_a_slow_preparation_are_told_apart() -> None:
    """What passed before the queue is nobody's wait for a slot."""
    summary = Life().at(0.1, "summarizing", None, turns=4).queued(5).started(5.1).prefill(5.1, 40).tokens(5.2).ended(5.3)
    assert "was the summary of its older turns, before the engine had it (5.0 s)" in (verdict_of(facts(summary)) or "")
    assert "A summary of its 4 older turns was made first" in sentences_of(facts(summary))[1]
    slow = Life().queued(2).started(2.1).prefill(2.1, 40).tokens(2.2).ended(2.3)
    assert "was reading and preparing it" in (verdict_of(facts(slow)) or "")


def test_several_choices() -> None:
    """The wait is that of the first that started; a stop names its choice."""
    life = Life(n=2).queued(0).queued(0, choice=1).started(1, choice=1).started(4).tokens(1.2, choice=1).tokens(4.1)
    life.at(5, "swap", 1).at(6, "resume", 1).tokens(6.1, choice=1).ended(7)
    known = facts(life)
    assert known.figures.queue is not None
    assert known.figures.queue.waited_ms == 1000
    assert any(said.startswith("Choice 1 was swapped to host memory 5.0 s") for said in sentences_of(known))


def test_an_answer_of_another_server_is_told_with_its_cost() -> None:
    """In figures as well; that the engine here has not had it goes without saying."""
    life = Life().tokens(1.0, 2.0).ended(3.0)
    tokens: dict[str, Any] = {"prompt_tokens": 1200, "cached_tokens": 200, "output_tokens": 2}
    life.record.bill = Bill(backend="cloud", label="public", reason="a reason", cost_nano=2_020_000, **tokens)
    known = facts(life)
    assert sentences_of(known)[1:3] == [
        "It was answered by the backend cloud, because a reason; its label is public.",
        "It cost 0.00202: 1,200 prompt tokens (200 cached) and 2 output tokens.",
    ]
    assert "The engine has not had it." not in all_told(known)
    assert known.figures.bill == life.record.bill
