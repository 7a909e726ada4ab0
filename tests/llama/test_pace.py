"""What a request takes, from what passes take."""

from __future__ import annotations

import pytest

from poise.llama.choosing.pace import Pace, _pace

FILE = {"prompt": 192_000.0, "decode": 7_000.0, "decode_8": 32_000.0}


def test_a_request_is_its_prompt_and_its_share_of_the_decodes() -> None:
    """80 prompt tokens by passes of 64, and 128 decodes, alone or eight in a pass."""
    found = _pace(FILE, {"prompt": 72_000.0, "decode": 8_900.0, "decode_8": 22_400.0})
    assert found.prompt == pytest.approx(192 / 72)
    assert found.decode == pytest.approx(70 / 89)
    assert found.alone == pytest.approx((240 + 896) / (90 + 1139.2))
    assert found.among_8 == pytest.approx((240 + 512) / (90 + 358.4))


def test_what_is_in_the_way() -> None:
    """Nothing, too little gain for many, or too much loss for one."""
    good = Pace(2.0, 0.8, 1.5, 0.9, 1.6)
    assert good.problem(0.85) == ""
    assert "wanted is 0.95 (model.weights_alone_min; a request among eight x1.60" in good.problem(0.95)
    assert "not faster on this host" in Pace(1.5, 2.0, 1.0, 1.8, 1.09).problem(0.85)
