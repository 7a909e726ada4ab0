"""Every kind of attack, on a server that goes on answering those who are polite, and keeps nothing of it."""

from __future__ import annotations

import pytest

from tests.attacks.besieged import Besieged, attack
from tests.attacks.kinds import KINDS

ENDED = {"closed", "408"}
UNREAD = {"closed"}
COMPUTED = {"200", "429", "503", "no", "closed", "gone", "held"}
"""A tenant that wants too much is served in its turn, or told to come later; who has no answer in time goes."""

EXPECTED: dict[str, set[str]] = {
    "header_fields": {"431", "closed"},
    "header_value": {"431", "closed"},
    "request_line": {"414", "closed"},
    "slow_headers": ENDED,
    "silence": ENDED,
    "empty_lines": ENDED,
    "body_never_comes": ENDED,
    "slow_body": ENDED,
    "unread_files": UNREAD,
    "unread_figures": UNREAD,
    "unread_streams": UNREAD,
    "pipelined_streams": UNREAD,
    "pipelined_and_gone": {"gone"},
    "upgrade_with_body": {"400"},
    "upgrade_to_websocket": {"200", "400", "426"},
    "smuggled": {"400", "closed"},
    "connection_storm": {"gone"},
    "endless_body": {"413", "closed"},
    "unfinished_bodies": {"closed", "refused"},
    "long_word": {"200", "400"},
    "white_space": {"200", "400"},
    "blank_margins": {"200", "400"},
    "long_text": {"400"},
    "long_text_and_gone": {"gone"},
    "long_text_to_trim": {"200", "400"},
    "many_parts": {"400", "413"},
    "many_messages": {"400", "413"},
    "malformed": {"400"},
    "random_bytes": {"200", "400", "404", "405", "408", "413", "414", "429", "431", "501", "505", "no"},
    "refused": {"400", "403", "404"},
    "strangers": {"401"},
    "forged_headers": {"400", "401", "403", "421"},
    "odd_paths": {"400", "404", "405"},
    "lookers": {"200"},
    "explanations": {"200", "404", "none"},
    "journal_readers": {"200", "429", "503", "gone"},
    "erasures": {"200"},
}
"""What may come of a strike: its first word."""


@pytest.mark.parametrize("name", KINDS)
async def test_nobody_else_notices(anybodys: Besieged, name: str) -> None:
    """A crew of one kind, beside somebody polite: each is told what is wrong, is served in its turn, or closed."""
    outcomes = await attack(anybodys, name)
    assert {outcome.split()[0] for outcome in outcomes} <= EXPECTED.get(name, COMPUTED), outcomes
