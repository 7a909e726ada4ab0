"""Money is reckoned in integers: what settings say is what is charged, to the last decimal."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config.hybrid import BackendSettings, amount_of, nano_of
from poise.gateway.models.money.prices import NANO_MAX, Prices, Tokens

TOKENS = st.integers(0, 10**7)
PRICES = st.decimals(0, 999_999_999, places=3).map(str)


def prices(**given: Any) -> Prices:
    return Prices.of(BackendSettings(url="https://api.example.com/v1", **given))


@given(PRICES, PRICES, PRICES, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_exact(
    price_input: str, price_cached: str, price_output: str, n_prompt: int, n_cached: int, n_output: int
) -> None:
    """As decimal arithmetic has it, and never above the worst case of the same numbers."""
    list_ = prices(price_input=price_input, price_cached=price_cached, price_output=price_output)
    n_cached = min(n_cached, n_prompt)
    units = [Decimal(price_input) * (n_prompt - n_cached), Decimal(price_cached) * n_cached, Decimal(price_output) * n_output]
    cost = list_.cost(Tokens(n_prompt, n_cached, n_output))
    assert cost == min(sum(units) * 1000, NANO_MAX)
    assert cost <= list_.most(n_prompt, n_output)


def test_a_price_for_cached_tokens_is_that_of_others_unless_it_is_said() -> None:
    """Nor do more tokens come from a cache than the prompt has, whatever a server tells."""
    assert prices(price_input="2.5", price_output="10", price_version="2026-11") == Prices(2500, 2500, 10_000, "2026-11")
    assert prices(price_input="2.5", price_cached="0").cost(Tokens(10, 50, 0)) == 0
    assert prices(price_input="2.5").cost(Tokens(-5, -5, -5)) == 0


@pytest.mark.parametrize(
    ("amount", "text"), [("", "0.00"), ("0.001", "0.001"), ("12", "12.00"), ("2.50", "2.50"), ("999999999.999", "999999999.999")]
)
def test_an_amount_is_shown_as_it_is_written(amount: str, text: str) -> None:
    """With two decimals at least."""
    assert amount_of(nano_of(amount)) == text
    assert amount_of(-nano_of("1.5")) == "-1.50"
    assert amount_of(1) == "0.000000001"
