"""Grammars that strangers wrote: read by llguidance here, where that can be ended, before the engine is given any."""

import msgspec
from llguidance.gbnf_to_lark import gbnf_to_lark

from poise.llama.binding.vocab import Vocab
from poise.llama.running.grammar import llguidance, make_matcher, make_tokenizer, token_names
from poise.wire import text as wire
from poise.worker.text.tokeniser import VocabularyPort

WORDS_MAX = 400
"""Characters of what llguidance says that are told to a caller."""


class GrammarReader:
    """For one model; without any, each byte is a token. Making it takes a second for large vocabularies."""

    def __init__(self, vocab: VocabularyPort | None) -> None:
        assert vocab is None or isinstance(vocab, Vocab), "llguidance reads the vocabulary where it is"
        self._tokenizer = make_tokenizer(vocab, token_names(vocab)) if vocab is not None else llguidance().LLTokenizer("byte")

    def check(self, job: wire.CheckGrammar) -> wire.Checked | wire.Refused:
        """Make it as the engine will, to the mask of its first token."""
        text = job.text
        if job.kind == "gbnf":
            try:
                text = msgspec.json.encode({"grammars": [{"lark_grammar": gbnf_to_lark(text)}]}).decode()
            except MemoryError:
                raise
            except Exception as error:  # its reader is a stranger's, too, and what it raises is not told
                return _refused(f"it is no GBNF: {error}")
        matcher = make_matcher(self._tokenizer, text)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return _refused(matcher.get_error()) if matcher.is_error() else wire.Checked(text if text != job.text else "")


def _refused(words: str) -> wire.Refused:
    said = " ".join(words.split())
    return wire.Refused(400, "invalid_schema", said if len(said) <= WORDS_MAX else said[:WORDS_MAX] + "…")
