"""One job in, its answer out: what a text worker does, without the process around it."""

import signal
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from poise.wire import text as wire
from poise.worker.text import fitting
from poise.worker.text.chat_template import ChatTemplate, TextRefused, trace_of
from poise.worker.text.differences import fields_of
from poise.worker.text.tokeniser import Tokeniser, common_tokens

if TYPE_CHECKING:
    from poise.worker.text.grammar import GrammarReader
    from poise.worker.text.rules import Rules

LOOK_CPU_S = 1.0
"""For what is rendered once, to see what a chat template knows: a worker whose template loops for ever answers raw prompts."""


class Desk:
    """Answers jobs for one model. `on_rendered` is called when a job's chat template is done."""

    def __init__(self, tokeniser: Tokeniser | None, on_rendered: Callable[[], None] = lambda: None) -> None:
        """Without a tokeniser: where there is no model."""
        self._tokeniser = tokeniser
        self._on_rendered = on_rendered
        self._grammars: GrammarReader | None = None
        self._rules: tuple[tuple[list[str], list[str]], Rules] | None = None
        """The last ones, and what they were made of."""

    def answer(self, job: wire.Job) -> wire.Answer:
        """Whatever goes wrong is an answer, too."""
        try:
            return self._answer(job)
        except TextRefused as error:
            return wire.Refused(error.status, error.code, error.message, error.param, error.trace)
        except MemoryError:
            message = "The text takes more memory to tokenise than there is for one request. Send a shorter one."
            return wire.Refused(400, "text_rejected", message)
        except Exception as bug:
            return wire.Broken(trace_of(bug))

    def _answer(self, job: wire.Job) -> wire.Answer:
        if isinstance(job, wire.Scan):
            if self._rules is None or self._rules[0] != (job.rules, job.words):
                from poise.worker.text.rules import Rules

                self._rules = (job.rules, job.words), Rules(job.rules, job.words)
            return wire.Scanned(self._rules[1].scan(job.texts))
        tokeniser = self._tokeniser
        if isinstance(job, wire.CheckGrammar):
            if self._grammars is None:
                from poise.worker.text.grammar import GrammarReader

                self._grammars = GrammarReader(tokeniser.vocab if tokeniser is not None else None)
            self._on_rendered()
            return self._grammars.check(job)
        assert tokeniser is not None, "without a model there are no tokens"
        match job:
            case wire.Chat():
                ids, note = tokeniser.chat(job.messages, job.n_added, job.rendering, on_rendered=self._on_rendered)
                return _ids(ids, job.ids_max, note)
            case wire.Prompt():
                if job.suffix:
                    return _ids(tokeniser.infill_ids(job.text, job.suffix), job.ids_max)
                ids = tokeniser.prompt_ids(job.text, add_special=job.add_special, parse_special=job.parse_special)
                return _ids(ids, job.ids_max)
            case wire.Write():
                pieces, note = tokeniser.template.write(job.messages, 0, job.rendering)
                self._on_rendered()
                return wire.Written("".join(piece.text for piece in pieces), note)
            case wire.Opening():
                tokens = common_tokens(tokeniser, job.system)
                return wire.Ids(len(tokens), tokens)
            case wire.Fit():
                return fitting.fit(tokeniser, job, self._on_rendered)
            case wire.Cut():
                return fitting.cut(tokeniser, job, self._on_rendered)


def vocabulary(tokeniser: Tokeniser) -> wire.Vocabulary:
    """The bytes of all tokens, as the gateway gets them."""
    vocab = tokeniser.vocab
    names = [vocab.piece(token, special=True) for token in range(vocab.n_tokens)]
    hidden = bytes(bool(name) and not vocab.piece(token, special=False) for token, name in enumerate(names))
    ends = array("I", accumulate(map(len, names))).tobytes()
    marks, template, special = tokeniser.turn_marks(), tokeniser.template, dict(vocab.special)
    return wire.Vocabulary(len(names), b"".join(names), ends, hidden, marks, special, template.source, *looked_at(template))


def looked_at(template: ChatTemplate) -> tuple[bool, bool, dict[str, Any]]:
    """Whether it knows tools, whether it keeps white space, and how it writes answers; that it does none of that, where finding
    out takes too long: see LOOK_CPU_S."""

    def stop(*_: object) -> None:
        raise TimeoutError("the chat template takes too long to look at")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LOOK_CPU_S, LOOK_CPU_S / 20)  # again and again: what is rendered next is stopped, too
    try:
        return template.knows_tools, template.keeps_blanks(), fields_of(template)
    except TimeoutError:
        return False, False, {}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _ids(ids: list[int], most: int, note: str = "") -> wire.Ids:
    return wire.Ids(len(ids), ids if len(ids) <= most else [], note)
