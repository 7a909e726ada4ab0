"""What the sampler draws, against plain definitions of each filter. Needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from poise.engine.ports import RunnerError
from poise.llama.running.sampler import Sampler, largest, random_pair
from poise.wire.to_engine import SamplingParams

N_VOCAB = 5000
EOG = (0, 2)
Row = npt.NDArray[np.float32]


def a_row(seed: int = 0, spread: float = 3.0) -> Row:
    """Logits of a model that is moderately sure."""
    return (np.random.Generator(np.random.PCG64(seed)).standard_normal(N_VOCAB) * spread).astype(np.float32)


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, N_VOCAB, EOG)


def draws(n: int, row: Row, **params: Any) -> list[int]:
    """Tokens of `n` draws from the same row."""
    drawing = sampler(**params)
    return [drawing.draw(row).token for _ in range(n)]


def probabilities(row: Row, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return np.asarray(weights / weights.sum())


def kept(row: Row, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    """The candidates, by the definitions: sort everything, cut three times."""
    order = np.argsort(-row, kind="stable")
    if top_k:
        order = order[:top_k]
    p = np.exp(row[order].astype(np.float64) - row.max())
    n_nucleus = int(np.searchsorted(np.cumsum(p) / p.sum(), top_p)) + 1 if top_p < 1 else len(order)
    return {int(token) for token, weight in zip(order[:n_nucleus], p, strict=False) if weight >= min_p}


def test_temperature_zero_takes_the_largest() -> None:
    """Greedy, whatever the filters say."""
    row = a_row()
    assert draws(3, row, temperature=0.0, top_k=3, top_p=0.1, min_p=0.5) == [int(row.argmax())] * 3


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 40, "min_p": 0.2},
        {"top_k": 40, "top_p": 0.5},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"top_k": 3000},
        {"top_k": N_VOCAB + 5, "top_p": 0.3},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 0.95, "min_p": 0.05},
        {"top_p": 1e-6},
        {"min_p": 0.3},
        {"min_p": 1.0},
    ],
)
@pytest.mark.parametrize("spread", [0.3, 1.5, 6.0])
def test_only_what_the_filters_keep_is_drawn(filters: dict[str, Any], spread: float) -> None:
    """For flat, moderate and sure models; and every kept token of a small set does appear."""
    row = a_row(3, spread)
    expected = kept(row, **filters)
    drawn = set(draws(400, row, temperature=2.0, seed=1, **filters))
    assert drawn <= expected
    if len(expected) <= 5 and spread < 6:
        assert drawn == expected


@pytest.mark.parametrize("filters", [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.02}])
def test_tokens_come_in_proportion_to_their_probability(filters: dict[str, Any]) -> None:
    """The frequencies of many draws fit the tempered distribution of what was kept."""
    row, temperature, n = a_row(5, 1.0), 0.4, 4000
    row[[10, 20, 30]] = [6.0, 5.8, 5.5]
    mask = np.full(N_VOCAB, -np.inf, np.float32)
    members = sorted(kept(row, **filters))
    mask[members] = row[members]
    expected = probabilities(mask, temperature)
    drawn = draws(n, row, temperature=temperature, seed=3, **filters)
    for token in (10, 20, 30):
        share = drawn.count(token) / n
        assert abs(share - expected[token]) < 4 * np.sqrt(expected[token] / n), token


def test_a_seed_fixes_the_draws() -> None:
    """Same seed and logits, same tokens; another seed, others. Any integer is a seed."""
    row = a_row()
    assert draws(20, row, seed=42) == draws(20, row, seed=42)
    assert draws(20, row, seed=42) != draws(20, row, seed=43)
    assert len(draws(2, row, seed=-1)) == len(draws(2, row, seed=1 << 80)) == 2


@pytest.mark.parametrize("cut", [1, 5, 19])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_p": 0.9, "top_k": 40},
        {"repetition_penalty": 1.4},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3},
        {"min_output": 10},
    ],
    ids=str,
)
def test_a_sampler_goes_on_where_another_stopped(params: dict[str, Any], cut: int) -> None:
    """With the tokens so far it stands where the other stood: same penalties, same ban on the end, same draws."""
    row, sampling = a_row(), SamplingParams(temperature=1.5, seed=9, **params)
    one = Sampler(sampling, (1, 2, 3), N_VOCAB, EOG)
    whole = [one.draw(row).token for _ in range(20)]
    other = Sampler(sampling, (1, 2, 3), N_VOCAB, EOG, whole[:cut])
    assert [other.draw(row).token for _ in range(20 - cut)] == whole[cut:]


def test_random_numbers_are_uniform_and_depend_on_seed_and_position() -> None:
    """Both of a pair; neighbouring seeds and positions have nothing in common."""
    pairs = np.array([random_pair(seed, position) for seed in range(100) for position in range(100)])
    assert pairs.min() >= 0.0
    assert pairs.max() < 1.0
    for column in pairs.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert abs(counts - 500).max() < 5 * np.sqrt(500)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.05
    assert abs(np.corrcoef(pairs[:-1, 0], pairs[1:, 0])[0, 1]) < 0.05
    assert len(np.unique(pairs)) == pairs.size
    assert random_pair(-1, 3) == random_pair((1 << 64) - 1, 3)


def test_the_row_is_never_written() -> None:
    """It belongs to llama.cpp."""
    row = a_row()
    before = row.copy()
    drawing = sampler((1, 2, 3), logit_bias=((5, 3.0),), repetition_penalty=1.3, presence_penalty=1.0, min_output=9)
    for _ in range(5):
        drawing.draw(row)
    assert (row == before).all()


def test_logit_bias_adds_and_bans() -> None:
    """A bias moves one token; -100 as good as removes it; biases of one token add up."""
    row = a_row()
    best = int(row.argmax())
    assert draws(1, row, temperature=0.0, logit_bias=((7, 100.0),)) == [7]
    assert draws(1, row, temperature=0.0, logit_bias=((best, -100.0),)) != [best]
    assert draws(1, row, temperature=0.0, logit_bias=((7, 50.0), (8, 60.0), (7, 50.0))) == [7]


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    """Presence once per token, frequency for each time."""
    row = np.zeros(N_VOCAB, np.float32)
    row[[11, 12]] = [1.0, 0.7]
    assert sampler((11, 11), temperature=0.0, presence_penalty=0.5).draw(row).token == 11
    assert draws(3, row, temperature=0.0, presence_penalty=0.5) == [11, 12, 11]
    assert draws(6, row, temperature=0.0, frequency_penalty=0.2) == [11, 11, 12, 11, 12, 11]


def test_repetition_penalty_counts_prompt_and_output() -> None:
    """Positive logits are divided, negative ones multiplied, once per token however often it occurred."""
    row = np.full(N_VOCAB, -5.0, np.float32)
    row[[11, 12]] = [3.0, 2.0]
    assert sampler((11, 11, 11), temperature=0.0, repetition_penalty=2.0).draw(row).token == 12
    assert draws(3, row, temperature=0.0, repetition_penalty=1.6) == [11, 12, 11]
    row[[11, 12]] = [-1.0, -1.5]
    assert sampler((11,), temperature=0.0, repetition_penalty=2.0).draw(row).token == 12


def test_penalties_remember_many_tokens() -> None:
    """The counts grow with the output: no token comes twice while there are others."""
    drawn = draws(300, np.zeros(N_VOCAB, np.float32), temperature=0.0, presence_penalty=2.0)
    assert len(set(drawn)) == 300


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_cannot_come_before_min_output(temperature: float) -> None:
    """End-of-generation tokens are banned for that many tokens, and not one longer."""
    row = a_row()
    row[2] = 1000.0
    drawn = draws(6, row, temperature=temperature, min_output=4)
    assert not set(drawn[:4]) & set(EOG)
    assert drawn[4:] == [2, 2]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"logit_bias": ((2, 100.0),)}])
def test_ignored_ends_are_never_drawn(params: dict[str, Any]) -> None:
    """With ignore_eos no end-of-generation token comes, whatever its logit."""
    row = a_row()
    row[list(EOG)] = 1000.0
    assert not set(draws(50, row, ignore_eos=True, **params)) & set(EOG)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logprobs_are_of_the_models_own_distribution(temperature: float) -> None:
    """Before bias, penalties and temperature; the likeliest in order; all of them sum to one."""
    row = a_row()
    expected = np.log(probabilities(row))
    drawn = sampler(temperature=temperature, logit_bias=((7, 100.0),), n_logprobs=5).draw(row)
    assert drawn.token == 7
    assert drawn.logprob == pytest.approx(expected[7], abs=1e-4)
    assert [entry.token for entry in drawn.top] == np.argsort(-row, kind="stable")[:5].tolist()
    assert [entry.logprob for entry in drawn.top] == pytest.approx(sorted(expected)[::-1][:5], abs=1e-4)
    everything = sampler(temperature=temperature, n_logprobs=N_VOCAB).draw(row).top
    assert sum(np.exp(entry.logprob) for entry in everything) == pytest.approx(1.0, abs=1e-4)


def test_logprobs_of_the_chosen_token_alone() -> None:
    """n_logprobs 0: its log probability and no list; -1: neither."""
    drawn = sampler(temperature=0.0, n_logprobs=0).draw(a_row())
    assert drawn.logprob is not None
    assert drawn.top == []
    assert sampler(temperature=0.0).draw(a_row()).logprob is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_logits_that_are_not_numbers_are_an_error(bad: float, params: dict[str, Any]) -> None:
    """A broken model must not look like one that answers."""
    row = a_row()
    row[1234] = bad
    with pytest.raises(RunnerError, match="not numbers"):
        sampler(**params).draw(row)


def test_a_row_without_any_candidate_is_an_error() -> None:
    """All logits minus infinity: nothing can be drawn."""
    with pytest.raises(RunnerError):
        sampler().draw(np.full(N_VOCAB, -np.inf, np.float32))


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 2.0])
def test_extreme_temperatures_do_not_overflow(temperature: float) -> None:
    """Close to zero it is greedy; warnings would be errors here."""
    row = a_row()
    row[3] = -np.inf
    for filters in ({}, {"top_k": 40}, {"min_p": 0.1}):
        token = draws(1, row, temperature=temperature, **filters)[0]
        assert temperature == 2.0 or token == int(row.argmax())


@pytest.mark.parametrize("n", [1, 5, 63, 64, 1000, 4999, 49_152])
@pytest.mark.parametrize("k", [1, 2, 40, 700])
def test_largest_finds_what_sorting_finds(n: int, k: int) -> None:
    """With ties, with lengths that do not divide into blocks, with more asked for than there is."""
    values = np.random.Generator(np.random.PCG64(n + k)).integers(0, max(2, n // 3), n).astype(np.float32)
    assert largest(values, k).tolist() == np.argsort(-values, kind="stable")[:k].tolist()


@pytest.mark.parametrize("filters", [{"top_p": 0.9999}, {"top_p": 0.9999, "top_k": 4000}], ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_a_nucleus_is_looked_for_among_the_likeliest_only(filters: dict[str, Any], spread: float) -> None:
    """However flat the distribution is, a request cannot have the whole vocabulary sorted for each of its tokens."""
    row = a_row(4, spread)
    drawing = Sampler(SamplingParams(temperature=2.0, **filters), (), N_VOCAB, EOG, candidates_max=100)
    likeliest = set(np.argsort(-row, kind="stable")[:100].tolist())
    assert {drawing.draw(row).token for _ in range(300)} <= likeliest


def test_a_nucleus_within_the_candidates_is_what_it_would_be_without_their_bound() -> None:
    """The probability that it must reach is that of the whole vocabulary, not of the candidates."""
    row = a_row(6, 3.0)
    n_nucleus = len(kept(row, top_p=0.8))
    assert n_nucleus < 400
    params = SamplingParams(temperature=1.3, seed=5, top_p=0.8)
    bounded, free = (Sampler(params, (), N_VOCAB, EOG, candidates_max=most) for most in (400, N_VOCAB))
    assert [bounded.draw(row).token for _ in range(300)] == [free.draw(row).token for _ in range(300)]


@pytest.mark.parametrize("filters", [{"top_k": 3000}, {"min_p": 1e-3}, {"top_k": 3000, "min_p": 1e-3}], ids=str)
def test_many_candidates_of_other_filters_are_not_cut(filters: dict[str, Any]) -> None:
    """Without top_p nothing has to be sorted, so all are drawn from, in proportion."""
    row, n = a_row(5, 0.5), 4000
    row[[10, 20, 30]] = [3.5, 3.2, 3.0]
    members = sorted(kept(row, **filters))
    assert len(members) > 1024
    mask = np.full(N_VOCAB, -np.inf, np.float32)
    mask[members] = row[members]
    expected = probabilities(mask)
    drawn = draws(n, row, seed=3, **filters)
    assert set(drawn) <= set(members)
    for token in (10, 20, 30):
        assert abs(drawn.count(token) / n - expected[token]) < 5 * np.sqrt(expected[token] / n), token
    assert len(set(drawn)) > 1024
