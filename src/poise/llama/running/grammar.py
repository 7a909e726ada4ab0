"""Constrained output: grammars on the model's vocabulary by llguidance, made beside the steps, and what they allow next.

One thread makes matchers, at low priority, because compute threads wait for each other many times in a pass; accounts take turns.
It is made of texts that a text worker has found to be usable within the same limits. llguidance never raises: after an error a
matcher stays in one, and that is the end of its request and of nothing else."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from poise.engine.ports import RunnerError, Wake, words_of
from poise.llama.binding.vocab import Vocab
from poise.llama.running.closing import SPARE, WINDOW, Closers
from poise.wire.figures import StructureFigures
from poise.wire.messages import STRUCTURE_FAILED
from poise.wire.to_engine import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Floats = npt.NDArray[np.floating]

BUILDER_NICE = 10
RUN_MAX = 32
"""Tokens of a forced run that are taken at once: its rows are computed in one pass when nobody else decodes."""
YIELD_EVERY = 256
"""Token names that are read at a stretch, while other threads wait for the interpreter."""
HIDDEN = b"\xff"
"""Before the name of a token that shows as nothing in an answer: llguidance knows by it that it is no text of a grammar."""
REASONING_TAIL = 256
"""Bytes of the reasoning in which its end is looked for: more than a mark and a token have."""
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIAS = np.where(_BITS, 0.0, -np.inf).astype(np.float32)
"""By byte of a mask: what is added to the logits of its eight tokens."""


def llguidance() -> Any:
    """The package, when it is needed: importing it takes as long as reading a vocabulary. (Its stubs lack `from_llamacpp`.)"""
    return importlib.import_module("llguidance")


def token_names(vocab: Vocab) -> list[bytes]:
    """The bytes of every token as llguidance takes them."""
    names = []
    for token in range(vocab.n_tokens):
        name = vocab.piece(token, special=True)
        names.append(HIDDEN + name if name and not vocab.piece(token, special=False) else name)
        if token % YIELD_EVERY == 0:
            time.sleep(1e-4)
    return names


def make_tokenizer(vocab: Vocab, names: Sequence[bytes]) -> LLTokenizer:
    """The vocabulary as llguidance takes it; it must outlive that. Takes up to a second, the interpreter's lock held for most of
    it."""
    pointer, tokenize = vocab.addresses
    tokenizer: LLTokenizer = llguidance().LLTokenizer.from_llamacpp(
        tokens=names, vocab_ptr=pointer, tokenize_fptr=tokenize, eos_token=vocab.eog_tokens, slices=None
    )
    return tokenizer


def make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Look at `is_error`: it does not raise. One mask takes about 5 ms at most, and no error quotes a grammar or an output."""
    limits = llguidance().LLParserLimits(step_lexer_fuel=70_000, step_max_items=50_000, verbose_errors=False)
    matcher: LLMatcher = llguidance().LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    return matcher


class Constraint:
    """What the output of one request may go on with. Belongs to one thread at a time."""

    def __init__(
        self,
        matcher: LLMatcher,
        eog: Sequence[int],
        grammar: Grammar,
        output: Sequence[int],
        tally: StructureFigures,
        piece: Callable[[int], bytes],
        closers: Closers | None = None,
    ) -> None:
        """`output`: what there is already. `piece`: the bytes of a token. Raises RunnerError when the grammar cannot be used, or
        does not have the output."""
        self._matcher, self._tally = matcher, tally
        self._closers, self._n_left, self.is_cut = closers, grammar.until, False
        self._eog, self._piece = frozenset(eog), piece
        self._closes, self._recent = grammar.closes.encode(), b""
        self._opens = grammar.opens
        self._reasons = bool(self._closes) and self._opens is None
        self._check(not matcher.is_error(), "cannot be used")
        for token in output:
            self.take(token)

    @property
    def is_over(self) -> bool:
        """Nothing can follow. (`allows` then refuses even the tokens that end a generation.)"""
        return not self._reasons and self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        return not self._reasons and self._matcher.is_accepting()

    def allows(self, token: int) -> bool:
        """A few microseconds. Reasoning may be anything, but not the end."""
        if self._reasons:
            return token not in self._eog
        return self._matcher.validate_tokens([token]) == 1 or token == self._opens

    def masked(self, logits: Floats) -> Floats:
        """A copy in which only what is allowed has a chance; all of it minus infinity where nothing has."""
        began_ns = time.perf_counter_ns()
        if self._reasons:
            masked = logits.copy()
            masked[list(self._eog)] = -np.inf
        else:
            mask = self._matcher.compute_bitmask()
            self._check(not self._matcher.is_error(), "is too complex to be followed")
            masked = logits + _BIAS[np.frombuffer(mask, np.uint8)].reshape(-1)[: len(logits)]
        self._tally.redraws += 1
        self._tally.mask_us += (time.perf_counter_ns() - began_ns) // 1000
        return masked

    def take(self, token: int) -> None:
        """The output goes on with an allowed token."""
        self._n_left -= 1
        opens, self._opens = self._opens, None
        if token == opens and self._matcher.validate_tokens([token]) != 1:
            self._reasons = True
        if self._reasons:
            self._recent = (self._recent + self._piece(token))[-REASONING_TAIL:]
            self._reasons = self._closes not in self._recent
            return
        self._check(self._matcher.consume_token(token), "does not have what came")

    def forced(self) -> list[int]:
        """Take the tokens that follow in any case, a bounded number of them; at the end of the allowance those that close."""
        if self._reasons:
            return []
        run = list(takewhile(lambda token: token not in self._eog, self._matcher.compute_ff_tokens()[:RUN_MAX]))
        for token in run:
            self.take(token)
        self._tally.forced += len(run)
        return run + self._closing()

    def _closing(self) -> list[int]:
        """What is open is closed while there is room for it; the output is then cut."""
        left = self._n_left
        if self._closers is None or not 0 < left <= WINDOW or self._matcher.is_accepting():
            return []
        way = self._closers.way(self._matcher, left)
        if way is None or len(way) + SPARE < left:
            return []
        for token in way:
            self.take(token)
        self.is_cut = True
        return way

    def _check(self, is_well: bool, otherwise: str) -> None:
        if not is_well:
            self._tally.failures += 1
            raise RunnerError(f"{STRUCTURE_FAILED}: its grammar {otherwise}")


_Job = tuple[int, Grammar, Sequence[int], Wake]
"""The request, what it is held to, its output so far, and what is called when that is made."""


class Grammars:
    """The constraints of all requests of one model: made by a thread of their own, taken by the one that computes."""

    def __init__(self, vocab: Vocab) -> None:
        self.tally = StructureFigures()
        self._vocab = vocab
        self._waiting: dict[str, deque[_Job]] = {}
        """By account, in the order of their turns."""
        self._made: dict[int, Constraint | RunnerError] = {}
        self._ready: deque[tuple[int, int]] = deque()
        self._changed = threading.Condition()
        self._is_usable = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="grammars", daemon=True)
        self._thread.start()

    def wait_until_usable(self) -> None:
        """Until the vocabulary was read: before anybody is served, because that would stop every stream for as long."""
        self._is_usable.wait()

    def prepare(self, request_id: int, account: str, grammar: Grammar, output: Sequence[int], wake: Wake) -> None:
        """Have it made; `wake` is called by the other thread when it is."""
        with self._changed:
            self._waiting.setdefault(account, deque()).append((request_id, grammar, output, wake))
            self._changed.notify_all()

    def prepared(self) -> list[tuple[int, int]]:
        """Requests whose constraints, or errors, have come since the last call, and what making each took, in microseconds."""
        return [self._ready.popleft() for _ in range(len(self._ready))]

    def take(self, request_id: int) -> Constraint | None:
        """The constraint of a request that was prepared; None: it has none. Raises RunnerError when it could not be made."""
        made = self._made.pop(request_id, None)
        if isinstance(made, RunnerError):
            raise made
        return made

    def drop(self, request_id: int) -> None:
        """The request has ended. One that is being made is there afterwards, and has to be dropped then."""
        with self._changed:
            self._made.pop(request_id, None)
            for account, jobs in self._waiting.items():
                self._waiting[account] = deque(job for job in jobs if job[0] != request_id)

    def close(self) -> None:
        """Before the vocabulary goes."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self._made.clear()

    def _work(self) -> None:
        tokenizer: LLTokenizer | None = None
        closers: Closers | None = None
        with contextlib.suppress(Exception):  # then each job fails, and whoever wants no grammar is served all the same
            names = token_names(self._vocab)
            tokenizer, closers = make_tokenizer(self._vocab, names), Closers(names)
        self._is_usable.set()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BUILDER_NICE)
        piece = partial(self._vocab.piece, special=True)
        while (job := self._next()) is not None:
            request_id, grammar, output, wake = job
            began_ns = time.perf_counter_ns()
            made: Constraint | RunnerError
            try:
                if tokenizer is None:
                    raise RunnerError(f"{STRUCTURE_FAILED}: llguidance has no use for the model's vocabulary")
                matcher = make_matcher(tokenizer, grammar.text)
                made = Constraint(matcher, self._vocab.eog_tokens, grammar, output, self.tally, piece, closers)
            except Exception as bug:
                made = bug if isinstance(bug, RunnerError) else RunnerError(f"{STRUCTURE_FAILED}: {words_of(bug)}")
            took_us = (time.perf_counter_ns() - began_ns) // 1000
            with self._changed:
                self.tally.builds += 1
                self.tally.build_us += took_us
                self._made[request_id] = made
            self._ready.append((request_id, took_us))
            wake()

    def _next(self) -> _Job | None:
        """The first one of the account whose turn it is. None: it is over."""
        with self._changed:
            while not self._is_closing:
                for account in list(self._waiting):
                    if jobs := self._waiting.pop(account):
                        job = jobs.popleft()
                        self._waiting[account] = jobs  # at the end
                        return job
                self._changed.wait()
            return None
