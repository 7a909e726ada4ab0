"""Synthetic prompts: common words in a random order, so that their length in tokens is known and no prefix cache helps."""

import random
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter

from poise_lab.scenarios.model import Segment

# Each word is one token in the usual English vocabularies when a space precedes it. No digits: they split differently.
_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information
back parent face others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect use class control field development role effort rate heart drug show leader light
voice wife police mind price report decision son view relationship town road arm difference value building action
season society tax director position player record paper space ground form event official matter center couple
site project activity star table need court oil situation cost industry figure street image phone data picture
practice piece land product doctor wall news test movie north love support technology step baby computer type
attention film tree source hair look window culture chance brother energy period course summer plant opportunity
term letter condition choice rule daughter south husband floor campaign material population call economy hospital
church risk fire future bank west sport board subject officer bed order author blood agency nature color store
sound note page race concern series language response animal factor decade article east artist scene stock career
treatment approach size fund media sign thought list individual quality pressure answer resource meeting disease
success cup amount ability staff character growth loss degree attack region television box training trade deal
election feeling standard bill message
"""
WORDS = tuple(_TEXT.split())

MALFORMED = (
    b"",
    b"{",
    b"[1, 2, 3]",
    b"\xff\xfe\x00",
    b'"text"',
    b'{"model": "default"}',
    b'{"model": "default", "messages": "Hello!"}',
    b'{"model": "default", "messages": [{"role": "user", "content": 5}]}',
    b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
    b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stream": 17}',
    b"[" * 20_000,
)
"""Bodies that are no requests: what a server must refuse, whatever it serves, and survive."""


def prompt(seed: int, text_seed: int, n_words: int) -> str:
    """`n_words` words, the same ones for the same two seeds. Two prompts differ from about the first word on."""
    rng = random.Random((text_seed << 32) | seed)  # noqa: S311 - a workload, not a secret
    return " ".join(rng.choices(WORDS, k=n_words))


def messages(segments: Iterable[Segment], text_seed: int, answers: Mapping[int, str]) -> list[dict[str, str]]:
    """A prompt as a conversation: answers are the assistant's messages, all else the user's, but for the very first word, which
    is the system message.

    An answer of an earlier turn stands there as the server gave it, by its segment's seed; as words of its length where it gave
    none. Without a system message many chat templates put in a long one of their own, which is the same in every request: a
    server that keeps prefixes would then be measured with part of each prompt computed already, and another without."""
    found: list[dict[str, str]] = []
    for is_answer, parts in groupby(segments, key=attrgetter("is_answer")):
        texts = [(answers.get(p.seed) if is_answer else None) or prompt(p.seed, text_seed, p.n_tokens) for p in parts]
        found.append({"role": "assistant" if is_answer else "user", "content": " ".join(texts)})
    system, _, user = found[0]["content"].partition(" ")
    return [{"role": "system", "content": system}, {"role": "user", "content": user or system}, *found[1:]]


def malformed_body(seed: int) -> bytes:
    """One of them, the same for the same seed."""
    return MALFORMED[seed % len(MALFORMED)]
