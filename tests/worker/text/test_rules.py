"""What rules find in texts, what they leave alone, and how long they take for the worst of them."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.wire import text as wire
from poise.worker.text import rules
from poise.worker.text.desk import Desk
from poise.worker.text.rules import PATTERNS, Rules

NAMES = ("card", "iban", "key", "email", "phone", "private_host")
ALL = Rules(NAMES)
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

HITS = {
    "card": [
        "4111111111111111",
        "pay with 4111 1111 1111 1111 12/27 123",
        "4111-1111-1111-1111.",
        "4111 - 1111 - 1111 - 1111",
        "3782 822463 10005",
        "5555555555554444, and so on",
        "2223003122003222",
        "6011111111111117",
        "30569309025904",
        "3530111333300000",
        "6200000000000005",
        "4222222222222",
        "卡号4111111111111111。",
        "on 2024-12-01 4111 1111 1111 1111",
        "4111\u00a01111\u20091111\u202f1111",
        "4111\u20111111\u20131111\u22121111",
        "４１１１１１１１１１１１１１１１",
        "٤١١١١١١١١١١١١١١١",
        "4111\u200b1111\u200b1111\u200b1111",
        r"4111\u00201111\u00201111\u00201111",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "de89370400440532013000",
        "IBAN:GB29NWBK60161331926819.",
        "FR14-2004-1010-0505-0001-3M02-606 x",
    ],
    "key": [
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrs",
        "sk-proj-Ab3dEfGh1jKlMnOpQrStUvWx",
        "sk-ant-api03-abcdefghij0123456789",
        "xoxb-123456789012-abcdefGHIJ",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        JWT,
        f"Authorization: Bearer {JWT}",
        'api_key = "9fG7dk2LmQ8xZp4T"',
        "password: hunter2!x9",
        '{"client_secret": "a8Df03kLmQ9sTz"}',
        "TOKEN=ab12cd34ef56gh78",
        "postgres://app:s3cr3tpw@db.example.com/x",
        "Bearer 0123456789abcdefXYZ",
    ],
    "email": ["anna.b+x@example.co.uk", "<a@b.io>", "jürgen@bücher.de", "ａ@ｂ.com", r"a\u0040b.com", "a\u00ad@b.com"],
    "phone": [
        "+49 30 1234567",
        "+49 (0)30 / 123 45 67",
        "+14155552671",
        "tel:+4930123456",
        "0049 30 1234567",
        "(415) 555-2671",
        "1-800-555-0199",
        "415.555.2671",
        "030 1234567",
        "0171/1234567",
        "0171 1234567 2024",
        "06 12 34 56 78",
        "07700 900123",
        "phone: 4155552671",
        '"mobile": "6505551234"',
        "call me at 555 2671 99",
    ],
    "private_host": [
        "10.1.2.3",
        "http://192.168.0.1:8080/x",
        "172.31.255.1/16",
        "127.0.0.1",
        "[::1]:80",
        "http://[::1]/",
        "fd00:1:2::3",
        "ping fe80::1 now",
        "localhost:8000",
        "db.prod.internal",
        "printer.local.",
        "LOCALHOST.localdomain",
        "git.corp, wiki.lan",
    ],
}

MISSES = [
    "in 1998 and 2024, from 2019 to 2023",
    "version 1.2.3, v10.0.0.1, 3.11.15, 0.12.345-678",
    "it costs 1.299,00 EUR or $1,299.00, +10.000.000 more",
    "2024-01-02T03:04:05.678901+02:00 and 2024-01-02 03:04:05",
    "01.02.2024 12:30, 01/02/2024 15, 31-12-1999 09 10",
    "01 02 03 04 05 06 07 08",
    "4111111111111112",
    "0.4111111111111111",
    "a4111111111111111",
    "4006381333931 is the number of an article",
    "1700000000000, 1700000000000000000",
    "550e8400-e29b-41d4-a716-446655440000",
    "12 34 5 6789 1 2 3 4 5 6 7 8",
    "DE89370400440532013001, XDE89370400440532013000",
    "std::1, a[::1], x[1:][::1], 2001:db8::1, ab::1",
    "8.8.8.8, 172.15.0.1, 172.32.0.1, 192.169.0.1, 10.256.0.1, 1.10.0.0.1",
    "threading.local() in .env.local of localhosts; jdk.internal.misc",
    "git@github.com:org/repo.git, icon@2x.png, react@18.2.0, @decorator, a @ b",
    "password: correct horse; token = tokenizer.encode(text9876), max_tokens = 4096",
    'api_key = os.environ["API_KEY_1"], secret: ${SECRET_12345}, token: <your-token-123>',
    "task-runner-for-the-best, sk-fading-circle-element-1, risk-adjusted-returns-2024-report",
    "https://host.example/a:b, https://user:password@host",
    "eyJ is how these begin, as in eyJabcdefghijk.lmnopqrstuv.wxyz",
    "+12, +1.23456789, a+1234567890, 1+1=2",
    "555 1234",
    "the quick brown fox jumps over 13 lazy dogs",
]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in HITS.items() for text in texts])
def test_what_is_found(name: str, text: str) -> None:
    """Alone, within a text, and as the value of a tool's argument."""
    for said in (
        text,
        f"Before,\n{text}\nand after",
        json.dumps({"x": f" {text} "}),
        json.dumps([json.dumps({"x": f" {text} "})]),
    ):
        assert name in ALL.scan(["nothing", said]), said


@pytest.mark.parametrize("text", MISSES)
def test_what_is_left_alone(text: str) -> None:
    assert ALL.scan([text]) == []


def test_only_what_is_wanted_is_looked_for() -> None:
    """And what is found is told by its name alone."""
    text = "a@b.io 4111111111111111"
    assert Rules(["email"]).scan([text]) == ["email"]
    assert ALL.scan([text, "10.0.0.1", ""]) == ["card", "email", "private_host"]
    assert Rules([]).scan([text]) == []


@pytest.mark.parametrize(
    ("words", "text", "is_found"),
    [
        (["Projekt Straße"], "über PROJEKT  STRASSE\nheute", True),
        (["falcon"], "The FALCON.", True),
        (["falcon"], "falcons", False),
        (["falcon"], "_falcon", False),
        (["falcon"], "ﬁrst ｆａｌｃｏｎ", True),
        (["falcon"], "fal\u200bcon", True),
        (["falcon"], r"fal\u0063on", True),
        (["étude"], "une e\u0301tude", True),
        (["a", "ab c"], "ab cd a", True),
        (["#x.y"], "z#x.y", True),
        (["#x.y"], "z#xay", False),
        (["\u200b"], "anything", False),
        (["計画"], "計画 b", True),
    ],
)
def test_words_of_the_operator(words: list[str], text: str, *, is_found: bool) -> None:
    """Whole, in any case, whatever is in them."""
    assert Rules([], words).scan([text]) == (["word"] if is_found else [])


@given(st.text(), st.sampled_from([text for texts in HITS.values() for text in texts]), st.text())
def test_the_set_misses_nothing(before: str, hit: str, after: str) -> None:
    """What any pattern finds alone is found by the set of all."""
    data = rules.plain(before + hit + after).encode("utf-8", "replace")
    alone = {i for i, pattern in enumerate(ALL._alone) if pattern.search(data)}
    assert set(ALL._set.Match(data) or ()) == alone


@given(st.text(alphabet=st.characters()), st.text(min_size=1))
def test_any_text_is_read(text: str, word: str) -> None:
    """Also one that has no bytes; and any word is one that can be looked for."""
    ALL.scan([text])
    Rules([], [word]).scan([text, word])


def luhn(digits: str) -> str:
    total = sum(sum(divmod(2 * int(d), 10)) if i % 2 == 0 else int(d) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


@given(st.text("0123456789", min_size=14, max_size=14), st.sampled_from(["4", "51"]), st.sampled_from(["", " ", "-", "  "]))
def test_any_card_is_found(digits: str, issuer: str, between: str) -> None:
    """By its number, in groups of four; one digit wrong, and it is none."""
    number = luhn((issuer + digits)[:15])
    groups = [number[i : i + 4] for i in range(0, 16, 4)]
    assert Rules(["card"]).scan([between.join(groups)]) == ["card"]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert Rules(["card"]).scan([wrong]) == []


def test_numbers_of_other_kinds_are_rarely_cards() -> None:
    """Of the 16-digit numbers that begin like a card, a tenth has the right check digit; others are none at all."""
    found = sum(Rules(["card"]).scan([str(7_000_000_000_000_000 + 7919 * i)]) == ["card"] for i in range(1000))
    assert found == 0


LARGE, SMALL = 1 << 17, 1 << 13
WORST = {
    "digits": "4",
    "groups": "4111 ",
    "cards that are none": "4111 1111 1111 1112 ",
    "pairs": "41 ",
    "ibans": "DE12 ",
    "addresses": "10.0.0.999 ",
    "dots": "a.",
    "hosts": "a.local(",
    "mails": "a@",
    "mails of files": "a@b.png ",
    "phones": "+49 ",
    "phones that are dates": "01-02-2024 ",
    "phones that are counts": "010 011 012\n",
    "tokens": "token=",
    "tokens that are none": "token=aaaaaaaaaa ",
    "jwt": "eyJ",
    "jwts that are none": "eyJabcdefghijk.abcdefgh. ",
    "keys": "sk-aaaaaaaaaaaaaaaaaaaa ",
    "logins": "ab://u:pass@",
    "colons": "ab:",
    "escapes": "\\u0034\\\\",
    "backslashes": "\\",
    "marks": "e\u0301\u0316",
    "many marks": "\u0316\u0301" * 64,
    "wide": "\ufdfa",
    "words": "falcon_",
}


@pytest.mark.parametrize("unit", WORST.values(), ids=list(WORST))
def test_time_grows_with_the_text(unit: str) -> None:
    """Sixteen times the text takes no more than forty times as long; a square would be 256."""
    searched = Rules(NAMES, ["falcon", "project x"])

    def cpu_s(n_chars: int) -> float:
        text = (unit * (n_chars // len(unit) + 1))[:n_chars]
        began = time.process_time()
        searched.scan([text])
        return time.process_time() - began

    cpu_s(1000)
    small, large = min(cpu_s(SMALL) for _ in range(2)), cpu_s(LARGE)
    assert large < 40 * max(small, 0.005), f"{small:.3f} s, and {large:.3f} s for sixteen times as much"


def test_a_desk_without_a_model() -> None:
    """Scans, and reads grammars; rules are made once for many requests."""
    desk = Desk(None)
    job = wire.Scan(["a@b.io", "Falcon"], ["email", "card"], ["falcon"])
    assert desk.answer(job) == wire.Scanned(["email", "word"])
    assert desk.answer(wire.Scan(["a@b.io"], ["card"])) == wire.Scanned([])
    grammar = json.dumps({"grammars": [{"lark_grammar": "start: /a+/"}]})
    assert desk.answer(wire.CheckGrammar("lark", grammar)) == wire.Checked()
    assert isinstance(desk.answer(wire.CheckGrammar("lark", '{"grammars": [{"lark_grammar": "start: x"}]}')), wire.Refused)
    assert isinstance(desk.answer(wire.Prompt("x", 0)), wire.Broken)


def test_every_rule_of_the_settings_has_a_pattern() -> None:
    assert {pattern.rule for pattern in PATTERNS} == set(NAMES)
    assert base64.urlsafe_b64decode(JWT.split(".")[0] + "=")
