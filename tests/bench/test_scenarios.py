"""Scenario files: what is accepted, how errors read, and that the generator is a pure function of its seed."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from statistics import median

import pytest

from poise_lab.bench.prompts import messages
from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.model import Length, PlannedRequest, RequestStream, Scenario
from poise_lab.scenarios.parser import load_scenario, parse_scenario

SHIPPED = sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml"))

BASE = """
name = "base"
description = "For tests."
duration_s = 10.0
drain_s = 5

[[clients]]
name = "chat"
tenant = "alice"
class = "interactive"
count = 2
arrival = { kind = "poisson", rate_per_s = 5.0 }
prompt_tokens = { kind = "lognormal", median = 80, sigma = 0.5, low = 20, high = 300 }
output_tokens = { kind = "uniform", low = 5, high = 9 }

[[clients]]
name = "writer"
tenant = "bob"
class = "background"
arrival = { kind = "closed" }
prompt_tokens = 60
output_tokens = 400
"""


def generated(scenario: Scenario, seed: int = 1, n: int = 20) -> dict[tuple[str, int], list[PlannedRequest]]:
    """The first `n` requests of each stream."""
    return {(s.client.name, s.instance): list(islice(s.requests, n)) for s in scenario.requests(seed)}


def check_error(text: str, *parts: str) -> None:
    """`text` is refused in one line that names the file and contains `parts`."""
    with pytest.raises(InputError) as caught:
        parse_scenario(text, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def stream(scenario: Scenario, name: str) -> RequestStream:
    return next(s for s in scenario.requests(1) if s.client.name == name)


def test_defaults() -> None:
    """What a file leaves out has the documented value."""
    scenario = parse_scenario(BASE, "my.toml")
    chat, writer = scenario.clients
    assert (scenario.warmup_requests, scenario.drain_s) == (0, 5.0)
    assert (writer.count, writer.arrival.think_s, writer.temperature) == (1, 0.0, 0.8)
    assert (writer.cancel_after_tokens, writer.n_requests_max) == (None, None)
    assert (chat.request_class, chat.tenant, chat.count) == ("interactive", "alice", 2)
    assert writer.prompt_tokens == Length("constant", 60, 60)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_load(path: Path, tmp_path: Path) -> None:
    """Every file in scenarios/ is valid, bears its file's name and says where its lengths come from."""
    (tmp_path / "trace.csv").write_text("timestamp,context,generated\n0,100,9\n610,200,9\n", encoding="utf-8")
    scenario = load_scenario(path, tmp_path / "trace.csv")
    assert scenario.name == path.stem
    assert all(stream for stream in generated(scenario).values())
    assert "Azure LLM 2023" in path.read_text(encoding="utf-8")


def test_shipped_scenarios_are_complete() -> None:
    """The scenarios that the documentation names exist."""
    names = ["agents", "cancel", "chat", "flood", "mixed", "newcomers", "single"]
    names += ["slow-readers", "soak", "storm", "sustained", "trace"]
    assert [path.stem for path in SHIPPED] == names


CONVERSATION = """
name = "talk"
description = "For tests."
duration_s = 10.0
drain_s = 5

[[clients]]
name = "talker"
tenant = "alice"
class = "interactive"
requests = 5
turns = 3
shared_prefix_tokens = 30
arrival = { kind = "closed" }
prompt_tokens = 20
output_tokens = 8
"""


def test_a_conversation_repeats_itself() -> None:
    """Each turn's prompt is all before it and new tokens; the next conversation begins with the shared prefix again."""
    (requests,) = generated(parse_scenario(CONVERSATION, "a")).values()
    assert [r.n_prompt_tokens for r in requests] == [50, 78, 106, 50, 78]
    first, second, third, fourth, _ = requests
    assert second.segments[:2] == first.segments
    assert third.segments[:4] == second.segments
    assert [s.is_answer for s in third.segments] == [False, False, True, False, True, False]
    assert fourth.segments[0] == first.segments[0]
    assert fourth.segments[1].seed != first.segments[1].seed
    assert sum(s.n_tokens for s in third.segments) == third.n_prompt_tokens


def test_prefixes_are_common_to_all_who_have_one() -> None:
    """Two tenants with the same prefix ask for the same words: what a cache must keep apart."""
    (own,) = generated(parse_scenario(CONVERSATION, "a")).values()
    (other,) = generated(parse_scenario(CONVERSATION.replace("talker", "twin").replace("alice", "bob"), "a")).values()
    assert own[0].segments[0] == other[0].segments[0]
    assert own[0].segments[1] != other[0].segments[1]
    texts = [words_of(messages(r.segments, 7, {})) for r in (own[0], own[1], other[0])]
    assert texts[0] == texts[1][:50]
    assert texts[0][:30] == texts[2][:30]
    assert len(texts[1]) == 78


def test_an_answer_is_repeated_as_it_was_given() -> None:
    """Word for word, as the assistant's message; one that never came is words of its length."""
    (requests,) = generated(parse_scenario(CONVERSATION, "a")).values()
    first, second, third = requests[:3]
    one, two = (messages(r.segments, 7, {first.answer_seed: " Hm.\nYes, "}) for r in (second, third))
    assert [m["role"] for m in two] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert two[: len(one)] == one
    assert one[2]["content"] == " Hm.\nYes, "
    assert len(two[4]["content"].split()) == second.n_output_tokens


def test_a_conversation_has_a_context_of_its_own_and_time_to_think() -> None:
    """Each begins with another one, which all of its turns repeat; requests are drawn as without."""
    closed = 'arrival = { kind = "closed", think_s = 0.5'
    agents = CONVERSATION.replace('arrival = { kind = "closed"', f"context_tokens = 500\n{closed}, think_max_s = 5.0")
    (turns,) = generated(parse_scenario(agents, "a")).values()
    (drawn,) = generated(parse_scenario(CONVERSATION.replace('arrival = { kind = "closed"', closed), "a")).values()
    contexts = [turn.before[1] for turn in turns]
    assert contexts[0] == contexts[1] == contexts[2] != contexts[3] == contexts[4]
    assert [turn.n_prompt_tokens - 500 for turn in turns] == [turn.n_prompt_tokens for turn in drawn]
    assert [turn.seed for turn in turns] == [turn.seed for turn in drawn]
    assert all(0.5 <= turn.think_s <= 5.0 for turn in turns)
    assert len({turn.think_s for turn in turns}) == 5
    assert {turn.think_s for turn in drawn} == {0.5}
    texts = [words_of(messages(turn.segments, 7, {})) for turn in turns]
    assert texts[0] == texts[1][: 30 + 500 + 20]
    check_error(agents.replace("5.0", "0.4"), "think_max_s = 0.4", "at least think_s")


def words_of(conversation: list[dict[str, str]]) -> list[str]:
    return " ".join(m["content"] for m in conversation).split()


def test_same_seed_same_requests() -> None:
    """The seed decides everything, and another seed decides differently."""
    assert generated(parse_scenario(BASE, "a")) == generated(parse_scenario(BASE, "b"))
    assert generated(parse_scenario(BASE, "a")) != generated(parse_scenario(BASE, "a"), seed=2)


def test_instances_differ() -> None:
    """Two instances of one client do not march in step."""
    requests = generated(parse_scenario(BASE, "a"))
    assert requests["chat", 0] != requests["chat", 1]


def test_streams_are_independent() -> None:
    """Another client in the file, or another order of reading, changes nobody's requests."""
    more = BASE.replace('[[clients]]\nname = "chat"', BASE[BASE.rindex("[[clients]]") :] + '\n[[clients]]\nname = "chat"')
    more = more.replace('name = "writer"', 'name = "other"', 1)
    with_other = generated(parse_scenario(more, "a"))
    assert len(with_other) == 4
    assert {key: value for key, value in with_other.items() if key[0] != "other"} == generated(parse_scenario(BASE, "a"))
    backwards = {
        (s.client.name, s.instance): list(islice(s.requests, 20)) for s in reversed(parse_scenario(BASE, "a").requests(1))
    }
    assert backwards == generated(parse_scenario(BASE, "a"))


def test_hash_seed_changes_nothing() -> None:
    """The requests are the same in a process with another PYTHONHASHSEED."""
    code = (
        "import sys; from itertools import islice; from poise_lab.scenarios.parser import parse_scenario\n"
        "for s in parse_scenario(sys.stdin.read(), 'x').requests(7): print(list(islice(s.requests, 5)))"
    )
    source = str(Path(sys.modules["poise_lab.scenarios"].__file__ or "").parents[2])

    def run(hash_seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        return subprocess.run(
            [sys.executable, "-c", code], input=BASE, env=env, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("2") != ""


def test_poisson_arrivals() -> None:
    """Arrivals rise, end before duration_s and come about as often as asked; a closed loop has none."""
    scenario = parse_scenario(BASE.replace("duration_s = 10.0", "duration_s = 400.0"), "a")
    arrivals = [request.arrival_s for request in stream(scenario, "chat").requests]
    times = [arrival for arrival in arrivals if arrival is not None]
    assert len(times) == len(arrivals)
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 400.0
    assert 1800 < len(times) < 2200
    assert next(stream(scenario, "writer").requests).arrival_s is None


def test_request_limit() -> None:
    """`requests` ends a stream that would go on."""
    scenario = parse_scenario(BASE + "requests = 3\n", "a")
    assert len(list(stream(scenario, "writer").requests)) == 3


def test_lengths_follow_their_distribution() -> None:
    """Uniform reaches both ends and no further; log-normal has its median and is cut at its bounds."""
    requests = generated(parse_scenario(BASE.replace("duration_s = 10.0", "duration_s = 400.0"), "a"), n=2000)
    outputs = [request.n_output_tokens for request in requests["chat", 0]]
    prompts = [request.n_prompt_tokens for request in requests["chat", 0]]
    assert set(outputs) == {5, 6, 7, 8, 9}
    assert 75 < median(prompts) < 85
    assert min(prompts) >= 20
    assert max(prompts) <= 300
    wide = BASE.replace("sigma = 0.5", "sigma = 9.0")
    prompts = [request.n_prompt_tokens for request in generated(parse_scenario(wide, "a"), n=50)["chat", 0]]
    assert {20, 300} <= set(prompts)


def test_cancel_after_the_end_is_no_cancel() -> None:
    """A client that would leave at or after the last token reads the answer to its end."""
    text = BASE + 'cancel_after_tokens = { kind = "uniform", low = 399, high = 401 }\n'
    found = {request.cancel_after_tokens for request in generated(parse_scenario(text, "a"), n=50)["writer", 0]}
    assert found == {399, None}


def test_warmup_is_not_the_load() -> None:
    """Warm-up requests look like the first client's and share no prompt with the load."""
    scenario = parse_scenario(BASE.replace("drain_s = 5", "drain_s = 5\nwarmup_requests = 4"), "a")
    warmup = scenario.warmup(1)
    seeds = {request.seed for requests in generated(scenario).values() for request in requests}
    assert len(warmup) == 4
    assert all(5 <= request.n_output_tokens <= 9 and request.arrival_s is None for request in warmup)
    assert not seeds & {request.seed for request in warmup}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('name = "base"', 'name = "Base!"', ["name = 'Base!'", "a-z, 0-9"]),
        ('description = "For tests."', "description = 3", ["description = 3", "expected a string"]),
        ("duration_s = 10.0", "duration_s = 0", ["duration_s = 0", "from 0.01 to 86400"]),
        ("duration_s = 10.0", "duration_s = nan", ["duration_s = nan", "expected a number"]),
        ("duration_s = 10.0", "duration_s = true", ["duration_s = True", "expected a number"]),
        ("duration_s = 10.0", "", ["duration_s is missing", "given here: name, description"]),
        ("duration_s = 10.0", "duration_s = 10.0\nspeed = 1", ["speed = 1", "unknown key", "known here: name"]),
        ("count = 2", "count = 0", ["clients[0].count = 0", "an integer from 1 to 10000"]),
        ("count = 2", "count = 2.0", ["clients[0].count = 2.0", "an integer"]),
        ("count = 2", "count = true", ["clients[0].count = True", "an integer"]),
        ("count = 2", "cuont = 2", ["clients[0].cuont = 2", "unknown key", "count"]),
        ('class = "background"', 'class = "batch"', ["clients[1].class = 'batch'", '"interactive" or "background"']),
        ('kind = "closed" }', 'kind = "closed", rate = 5.0 }', ["arrival.rate = 5.0", "unknown key", "think_s"]),
        ('{ kind = "closed" }', '"closed"', ["clients[1].arrival = 'closed'", "expected a table"]),
        ("rate_per_s = 5.0", "rate = 5.0", ["clients[0].arrival.rate_per_s is missing", "given here: kind, rate"]),
        ("rate_per_s = 5.0", "rate_per_s = -1", ["clients[0].arrival.rate_per_s = -1", "0.001 to 10000"]),
        ("prompt_tokens = 60", "prompt_tokens = 0", ["clients[1].prompt_tokens = 0", "from 1 to"]),
        ("prompt_tokens = 60", 'prompt_tokens = "60"', ["clients[1].prompt_tokens = '60'", "an integer"]),
        ("low = 5, high = 9", "low = 9, high = 5", ["clients[0].output_tokens.high = 5", "from 9 to"]),
        ("low = 5, high = 9", "low = 5, high = 9, median = 7", ["output_tokens.median = 7", "unknown key"]),
        ("median = 80", "median = 800", ["clients[0].prompt_tokens.median = 800", "from 20 to 300"]),
        ('name = "writer"', 'name = "chat"', ["clients[1].name = 'chat'", "another client has this name"]),
        ("[[clients]]", "[[client]]", ["clients is missing", "given here", "client"]),
        ("[[clients]]", "[[clients", ["not valid TOML"]),
    ],
)
def test_bad_files_are_explained(old: str, new: str, parts: list[str]) -> None:
    """The message names the key, its value and what is allowed."""
    assert old in BASE
    check_error(BASE.replace(old, new), *parts)


def test_unreadable_files(tmp_path: Path) -> None:
    """A file that is absent or not text is a InputError like any other mistake."""
    with pytest.raises(InputError, match="cannot be read"):
        load_scenario(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load_scenario(tmp_path / "binary.toml")
