"""Predicted against live: reading a benchmark's file, and laying the two beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poise.config import Settings
from poise_lab.bench.document import run_as_json
from poise_lab.bench.load import RoundResult
from poise_lab.bench.record import RequestRecord
from poise_lab.bench.rounds import Round, ScenarioRun, ScenarioSource
from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.report import comparison_table, load_live, predict
from poise_lab.sim.simulate import Options, simulate
from poise_lab.sim.world import TemplateTokens, template_tokens

SINGLE = Path(__file__).parents[2] / "scenarios" / "single.toml"
TEMPLATE_TOKENS = 9


def bench_file(path: Path, slowness: float) -> None:
    """What the benchmark would write of a server that is as the simulation says, only slower by a factor."""
    scenario = load_scenario(SINGLE)
    rounds = []
    for number, seed in enumerate((1, 2)):
        done = simulate(scenario, Settings(), seed, Options(template=TemplateTokens(TEMPLATE_TOKENS)))
        records = []
        for index, r in enumerate(done.records):
            chunks_ns = [round((at_ns - r.sent_ns) * slowness) for at_ns in r.times_ns]
            records.append(
                RequestRecord(
                    r.client, r.tenant, "interactive", 0, index, r.n_prompt - TEMPLATE_TOKENS, len(r.tokens), r.sent_ns,
                    status="ok", chunks_ns=chunks_ns, end_ns=chunks_ns[-1], n_prompt_reported=r.n_prompt,
                    n_output_reported=len(r.tokens),
                )
            )  # fmt: skip
        window_ns = round(scenario.duration_s * 1e9)
        rounds.append(Round(number, seed, {"ours": RoundResult("http://x", seed, records, [], window_ns, window_ns, 0.0)}))
    run = ScenarioRun(ScenarioSource(scenario, str(SINGLE), ""), rounds)
    path.write_text(json.dumps({"scenarios": [run_as_json(run)]}))


def test_the_same_server_compares_as_the_same(tmp_path: Path) -> None:
    """A server twice as slow has twice the TTFT; what the template adds is taken from the file."""
    path = tmp_path / "bench.json"
    bench_file(path, slowness=2.0)
    scenario = load_scenario(SINGLE)
    live = load_live(path, scenario)
    assert (live.seeds, live.template) == ([1, 2], TemplateTokens(TEMPLATE_TOKENS))
    options = Options(template=live.template)
    predicted = predict(scenario, live, lambda seed: simulate(scenario, Settings(), seed, options))
    for figure in ("ttft_ms_p50", "ttft_ms_p95"):
        assert live.clients["alone"][figure] == pytest.approx(2 * predicted["alone"][figure], rel=0.01)
    assert comparison_table(predicted, live).row_count == 1


def test_what_a_template_adds_is_told_from_what_turns_add() -> None:
    """Fourteen tokens a prompt and eleven for each earlier turn, whatever single requests were off by."""
    scenario = load_scenario(SINGLE.parent / "chat.toml")
    requests = [
        {"client": client, "index": index, "prompt_tokens_planned": 100, "prompt_tokens": 114 + 11 * turn + odd}
        for client, turns in (("talker", 5), ("visitor", 1))
        for index in range(10)
        for turn in [index % turns]
        for odd in [2 if index == 7 else 0]
    ]
    unanswered = {"client": "talker", "index": 4, "prompt_tokens_planned": 100, "prompt_tokens": None}
    assert template_tokens(scenario, [*requests, unanswered]) == TemplateTokens(14, 11)
    assert template_tokens(scenario, [unanswered]) == TemplateTokens()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "not a file of poise bench"),
        ('{"scenarios": [{"name": "other"}]}', "holds no scenario 'single'; it has other"),
        ('{"scenarios": [{"name": "single"}]}', "KeyError"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    """The file, and what is missing."""
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        load_live(path, load_scenario(SINGLE))
