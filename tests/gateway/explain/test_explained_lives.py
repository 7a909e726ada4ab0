"""What is said of each of many lives, word for word: `explained_lives.txt` has the verdict and the sentences of every life below.

A change of words is a change of that file, to be read in its difference. To write it anew:

    .venv/bin/python -m tests.gateway.explain.test_explained_lives > tests/gateway/explain/explained_lives.txt
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import structs

from poise.gateway.explain import words
from poise.gateway.explain.facts import Facts, Weather
from poise.gateway.explain.neighbours import NEIGHBOURS_MAX, SlotLimits
from poise.gateway.explain.words import ROUTES, sentences_of, verdict_of
from poise.gateway.models.local.refusals import queue_timeout
from poise.gateway.records.changes import STOPS, RequestState
from poise.gateway.records.following import Stop
from poise.gateway.records.record import MOMENTS_MAX
from poise.gateway.records.values import Bill
from tests.gateway.lives import SECRET, Life, facts, holder

GOLDEN = Path(__file__).with_name("explained_lives.txt")
SAID_IN: tuple[ModuleType, ...] = (words,)
"""The modules whose phrases must all have been said of one life at least."""
LIVES: dict[str, Callable[[], Facts]] = {}


def life(make: Callable[[], Facts]) -> Callable[[], Facts]:
    """One whose name is its function's, in words."""
    LIVES[make.__name__.replace("_", " ")] = make
    return make


def waited(until_s: float = 8.2) -> Life:
    """One that got its slot at that moment, and then had its answer at once."""
    asked = Life().queued(0.08, position=3, eta_ms=6000).started(until_s, cached=60).prefill(until_s, 40, 0.2, beside=7)
    return asked.tokens(until_s, until_s + 0.1, until_s + 0.2).ended(until_s + 0.5)


def decoding(**arguments: int) -> Life:
    """One that has given four tokens by 0.5 s."""
    return Life(**arguments).queued(0).started(0.1).prefill(0.1, 40).tokens(0.2, 0.3, 0.4, 0.5)  # type: ignore[arg-type]


def others(n: int, begin_s: float, end_s: float, tenant: str = "b", request_class: str = "interactive") -> list[Life]:
    return [holder(f"{tenant}-{request_class}-{i}", begin_s, end_s, tenant, request_class) for i in range(n)]


# --- nothing stands out --------------------------------------------------------------------------------------------------------


@life
def quick() -> Facts:
    return facts(Life().queued(0).started(0.02).prefill(0.02, 1, 0.02).tokens(0.02, 0.0204, 0.1).ended(0.11))


@life
def one_token_and_a_share_of_nothing() -> Facts:
    asked = Life(request_class="background").queued(0).started(0.02).prefill(0.02, 40, 0.02).tokens(0.02).ended(200)
    asked.record.served_us = 20_000
    return facts(asked, now_s=300.0)


@life
def much_of_it_was_guessed() -> Facts:
    asked = Life().queued(0).started(0.02).prefill(0.02, 1, 0.02).tokens(0.02, 0.0204, 0.1)
    asked.record.choices[0].n_drafted, asked.record.choices[0].n_accepted = 1400, 1190
    return facts(asked.ended(0.11))


# --- before the queue ----------------------------------------------------------------------------------------------------------


@life
def its_older_turns_were_summarized() -> Facts:
    asked = Life().at(0.1, "summarizing", None, turns=4).queued(5).started(5.1).prefill(5.1, 40).tokens(5.2).ended(5.3)
    return facts(asked)


@life
def its_preparation_took_long() -> Facts:
    return facts(Life().queued(2).started(2.1).prefill(2.1, 40).tokens(2.2).ended(2.3))


@life
def it_is_being_prepared() -> Facts:
    return facts(Life(), now_s=3.0)


# --- the wait ------------------------------------------------------------------------------------------------------------------


@life
def every_slot_was_held() -> Facts:
    crowd = [*others(5, 0.0, 7.9), *others(2, 0.0, 7.95, "a"), *others(1, 0.0, 8.0, "b", "background")]
    return facts(waited(), crowd)


@life
def an_operator_sees_who_held_the_slots() -> Facts:
    return facts(waited(), [*others(7, 0.0, 7.9), *others(1, 0.0, 7.9, "a")], viewer=None)


@life
def slots_were_taken_after_it_came() -> Facts:
    return facts(waited(), others(8, 1.0, 7.9))


@life
def its_class_held_what_it_may() -> Facts:
    return facts(waited(), others(2, 0.0, 7.95, "a"), limits=SlotLimits("short", 8, 2))


@life
def its_tenant_ran_what_it_may() -> Facts:
    return facts(waited(), others(2, 0.0, 7.95, "a"), limits=SlotLimits("short", 8, 8, 2))


@life
def compute_was_short_and_one_slot_was_held() -> Facts:
    weather = Weather({"compute": 0.9, "none": 0.1}, ("normal", "busy"))
    return facts(waited(), others(1, 0.0, 7.95, "a"), weather=weather)


@life
def every_limit_in_turn() -> Facts:
    limited = {
        "host_memory": 0.4,
        "kv_cells": 0.2,
        "tenant_limits": 0.15,
        "power": 0.12,
        "readers": 0.1,
        "idle": 0.06,
        "none": 0.05,
    }
    return facts(waited(), weather=Weather(limited | {"compute": 0.004, "new_limit": 0.05}, ("overloaded",), 3.14))


@life
def a_limit_without_a_name_of_its_own() -> Facts:
    return facts(waited(), weather=Weather({"new_limit": 0.004, "none": 0.996}, ("normal",), 1.2))


@life
def nothing_is_known_of_its_wait() -> Facts:
    return facts(waited())


@life
def only_who_held_slots_is_known_of_its_wait() -> Facts:
    return facts(waited(), others(1, 0.0, 1.0), limits=SlotLimits())


@life
def an_operator_kept_it_in_the_queue() -> Facts:
    asked = Life().queued(0.1).at(0.2, "pause").at(7, "resume").started(7.1).prefill(7.1, 40, 0.01).tokens(7.1)
    return facts(asked.ended(7.2))


@life
def its_own_reader_kept_it_for_a_part_of_its_wait() -> Facts:
    asked = Life().queued(0.1).at(0.2, "stall").at(1.7, "resume").started(7.1).prefill(7.1, 40, 0.01).tokens(7.1)
    return facts(asked.ended(7.2))


@life
def others_had_chunks_that_are_kept_as_one() -> Facts:
    other = Life("o", "b").queued(0).started(0).prefill(4, 800, 8.0, chunks=10, until_s=12).tokens(12.1).ended(13)
    return facts(waited(), [other])


@life
def it_is_queued() -> Facts:
    return facts(Life().queued(0.5, position=2, eta_ms=4000), others(6, 0.0, 7.9), now_s=3.0, limits=SlotLimits())


@life
def its_client_left_while_it_was_queued() -> Facts:
    asked = Life().queued(0.5, position=2).ended(3, "cancelled")
    asked.record.stopped_by = Stop.LEFT
    return facts(asked)


# --- the prompt ----------------------------------------------------------------------------------------------------------------


@life
def a_long_prompt_beside_another_request() -> Facts:
    asked = Life().queued(0.1).started(0.6, cached=60)
    for i in range(4):
        asked.prefill(0.6 + i, 2100, 0.5, beside=7)
    return facts(asked.tokens(3.6).ended(4, "length"), others(1, 0.0, 5.0))


@life
def a_long_prompt_that_was_stopped() -> Facts:
    asked = Life().queued(0.1).started(0.6).prefill(0.6, 100, 0.5).at(1, "stall").at(2, "resume").prefill(2.6, 100, 0.5)
    return facts(asked.tokens(2.6).ended(3))


@life
def it_has_its_slot_and_no_chunk() -> Facts:
    asked = Life().queued(0.5).started(1.0)
    asked.record.choices[0].state = RequestState.RUNNING
    return facts(asked, now_s=9.0)


@life
def it_had_its_slot_and_no_chunk() -> Facts:
    return facts(Life().queued(0.5).started(1.0).ended(9, "server_stopping"))


@life
def its_first_token_came_without_a_chunk() -> Facts:
    return facts(Life().queued(0.1).started(0.1).tokens(3.0).ended(3.1))


# --- between tokens ------------------------------------------------------------------------------------------------------------


@life
def swapped_for_another_with_a_long_prompt() -> Facts:
    heavy = Life("h", "b", "background", 0.5).queued(0.51).started(0.56).prefill(1.4, 512, 0.8).tokens(1.5).ended(3)
    return facts(decoding().at(0.56, "swap").at(3.46, "resume").tokens(3.6, 3.7).ended(3.8), [heavy])


@life
def beside_chunks_of_its_own_tenant() -> Facts:
    other = Life("o").queued(0.5).started(0.5).prefill(1.0, 640, 2.0, chunks=4, until_s=2.5).tokens(3.5, 3.6).ended(4)
    return facts(decoding().tokens(3.6, 3.7).ended(3.8), [other])


@life
def on_a_host_that_was_busy_with_something_else() -> Facts:
    weather = Weather({"compute": 1.0}, ("normal", "busy", "overloaded"), 3.14)
    return facts(decoding().tokens(3.6, 3.7).ended(3.8), weather=weather)


@life
def a_gap_without_a_cause() -> Facts:
    return facts(decoding().tokens(3.6, 3.7).ended(3.8))


@life
def paused_by_an_operator() -> Facts:
    return facts(decoding().at(1, "pause").at(2, "resume").tokens(2.6, 2.7))


@life
def held_for_its_reader() -> Facts:
    return facts(decoding().at(1, "stall").at(2, "resume").tokens(2.6, 2.7))


@life
def dropped_and_computed_again() -> Facts:
    asked = decoding().at(1, "drop", why="idle").at(2, "resume").prefill(2.5, 44, 0.4).tokens(2.6, 2.7).ended(2.8)
    asked.record.choices[0].n_recomputed = 44
    return facts(asked)


@life
def its_engine_died_and_another_one_had_it() -> Facts:
    asked = decoding().at(1, "lost").at(2, "recover", why="44").prefill(2.5, 44, 0.4).tokens(2.6, 2.7).ended(2.8)
    asked.record.served_us = 5
    return facts(asked)


@life
def in_the_queue_again_after_its_engine_died() -> Facts:
    return facts(decoding().at(1, "lost").queued(1.2).at(2.4, "recover").tokens(2.6, 2.7))


@life
def swapped_while_its_reader_was_behind() -> Facts:
    asked = Life().queued(0).started(0.1).tokens(0.2).at(1, "stall").at(2, "swap").at(5, "resume").tokens(5.1)
    return facts(asked, [Life("o", "b", arrived_s=1.5).queued(1.6).started(2.0)])


@life
def dropped_while_an_operator_had_paused_it() -> Facts:
    return facts(decoding().at(1, "pause").at(2, "drop").at(5, "resume").tokens(5.1))


@life
def swapped_and_it_did_not_go_on() -> Facts:
    return facts(decoding().at(1, "swap", why="turn").ended(6, "cancelled"))


def _stopped_for(why: str) -> Callable[[], Facts]:
    return lambda: facts(decoding().at(1, "swap", why=why).at(2, "drop", why=why).at(3, "resume").tokens(3.1).ended(4))


for _why in ("class", "tenant", "compute", "turn", "limit", "power", "outgrown"):
    LIVES[f"its slot was taken for the reason {_why}"] = _stopped_for(_why)


@life
def stopped_more_often_than_anybody_reads() -> Facts:
    asked = decoding()
    for i in range(8):
        asked.at(1 + i, "swap", why="turn").at(1.5 + i, "resume").tokens(1.6 + i)
    return facts(asked.ended(10))


@life
def one_choice_of_two_was_swapped() -> Facts:
    asked = Life(n=2).queued(0).queued(0, choice=1).started(1, choice=1).started(4).tokens(1.2, choice=1).tokens(4.1)
    return facts(asked.at(5, "swap", 1).at(6, "resume", 1).tokens(6.1, choice=1).ended(7))


@life
def it_went_on_as_background_work_for_every_reason() -> Facts:
    asked = decoding()
    for i, why in enumerate(("operator", "output", "time", "a new reason")):
        asked.at(0.6 + i / 10, "downgrade", why=why)
    return facts(asked.tokens(1.1, 1.2))


@life
def detached() -> Facts:
    asked = decoding()
    asked.record.detached = True
    asked.record.choices[0].state = RequestState.PAUSED
    return facts(asked, now_s=1.0)


# --- its cost, its end, and what is not known ----------------------------------------------------------------------------------


@life
def its_cost_is_known() -> Facts:
    asked = waited()
    asked.record.served_us = 900_000
    return facts(asked)


def _ended_as(outcome: str) -> Callable[[], Facts]:
    return lambda: facts(decoding().ended(0.6, outcome))


for _outcome in (
    "stop", "length", "cancelled", "reader_timeout", "engine_lost", "quarantined", "server_stopping", "failed",
    "internal_error", "a new end",
):  # fmt: skip
    LIVES[f"it ended as {_outcome}"] = _ended_as(_outcome)


@life
def it_waited_longer_than_its_queue_timeout() -> Facts:
    asked = Life(queue_timeout_ms=2000).queued(0.1)
    asked.record.failure = queue_timeout(2.0, 1.0)
    return facts(asked.ended(2.1, "expired"))


@life
def one_choice_of_two_waited_too_long() -> Facts:
    asked = Life(n=2, queue_timeout_ms=2000).queued(0).queued(0, choice=1).started(1).tokens(1.2).ended(2.1, "expired")
    asked.record.choices[0].outcome = "stop"
    return facts(asked)


@life
def both_choices_ended_well() -> Facts:
    asked = Life(n=2).queued(0).queued(0, choice=1).started(0.01).tokens(0.2).ended(0.3)
    asked.record.choices[1].outcome = "length"
    return facts(asked)


@life
def its_energy_is_estimated() -> Facts:
    asked = Life().queued(0).started(0.02).prefill(0.02, 40, 0.02).tokens(0.2).ended(2)
    asked.record.served_us = 400_000
    known = facts(asked)
    return replace(known, figures=structs.replace(known.figures, joules_estimate=6.0))


@life
def it_was_refused() -> Facts:
    asked = Life()
    asked.record.failure, asked.record.is_open = queue_timeout(2.0, 1.0), False
    return facts(asked.ended(1, "cancelled"))


@life
def not_everything_is_known() -> Facts:
    asked = Life().queued(0.08).started(0.1)
    while len(asked.record.timeline) < MOMENTS_MAX:
        asked.at(0.1, "prefill", computed_tokens=1, chunks=1, pass_us=1, beside_tokens=0, until_ms=100)
    asked.tokens(0.2, 0.3).ended(9)
    return facts(asked, others(NEIGHBOURS_MAX + 3, 1.0, 1.2), forgotten_s=5.0)


def answered_elsewhere(reason: str) -> Facts:
    asked = Life().tokens(1.0, 2.0).ended(3.0)
    is_known = reason != "asked"
    asked.record.bill = Bill(
        backend="cloud",
        label="public",
        reason=reason,
        prompt_tokens=1200,
        cached_tokens=200,
        output_tokens=2,
        cost_nano=2_020_000,
        is_known=is_known,
        price_version="2026-11" if is_known else "",
    )
    return facts(asked)


LIVES |= {f"another_server_answered_{reason}": partial(answered_elsewhere, reason) for reason in ROUTES}


# --- the tests -----------------------------------------------------------------------------------------------------------------


def told(name: str) -> str:
    """A section of the file."""
    known = LIVES[name]()
    return "\n".join([f"## {name}", "", f"> {verdict_of(known)}", "", *sentences_of(known), ""])


def recorded() -> dict[str, str]:
    sections = GOLDEN.read_text().split("\n## ")
    return {section.split("\n")[0].removeprefix("## "): section.removeprefix("## ") for section in sections}


@pytest.mark.parametrize("name", LIVES)
def test_of_each_life_exactly_that_is_said(name: str) -> None:
    """Verdict and sentences, in their order; and never a word of its text."""
    assert told(name).removeprefix("## ").strip() == recorded()[name].strip()
    assert SECRET not in told(name)


def test_the_file_has_these_lives_and_no_others() -> None:
    """In the order of this module."""
    assert list(recorded()) == list(LIVES)


def phrases(module: ModuleType) -> Iterator[str]:
    """Every piece of text with a space in it that a module may put into a sentence."""
    tree = ast.parse(inspect.getsource(module))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef))
    no_words = {id(line.value) for node in nodes for line in node.body if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in no_words:
            piece = node.value.strip() if isinstance(node.value, str) else ""
            if " " in piece:
                yield piece


@pytest.mark.parametrize("module", SAID_IN, ids=lambda module: module.__name__)
def test_every_phrase_is_said_of_one_of_them(module: ModuleType) -> None:
    """So that none is lost or changed unseen: who adds a phrase adds a life in which it is said."""
    text = GOLDEN.read_text()
    found = list(phrases(module))
    assert len(found) > 10
    assert not [phrase for phrase in found if phrase not in text]


def test_every_stop_is_said_of_one_of_them() -> None:
    """That a choice stopped, and what it was meanwhile."""
    text = GOLDEN.read_text()
    assert not [stop for stop in STOPS.values() if stop.stopped not in text or stop.meanwhile not in text]


if __name__ == "__main__":
    print("\n".join(map(told, LIVES)), end="")
