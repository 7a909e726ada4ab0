"""How much worse a model computes in another weight format: perplexity, and the distance of its predictions from the source's.

Both models read the same text, which ships with poise (prose, dialogue, lists, code, data; written for this), in windows of
their own. For each position the whole distribution of the next token is compared:

    perplexity ratio   exp of the mean difference in the surprise at the token that really comes: is it a worse model?
    KL divergence      mean over the positions, from the source's distribution to the candidate's: is it another model?

The second sees what the first can hide, because changes for better and worse do not cancel. Two computations of one and the
same model that only add up in another order are 0.003 apart here: so much is noise. The ratio has a standard error, too."""

import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from math import inf

import msgspec
import numpy as np
import numpy.typing as npt

from poise.engine.ports import Row
from poise.llama.binding.context import PoolContext
from poise.llama.binding.model import Model
from poise.llama.files.memory import PoolSpec

Floats = npt.NDArray[np.float32]

WINDOW = 360
WINDOWS = 4
CHUNK = 64
UNCOUNTED = 16
"""Predictions at a window's first positions know too little to be compared."""
HOPELESS = 4.0
"""A divergence this many times the limit is not measured to the end."""


class TooSlow(Exception):
    """Comparing would take longer than is allowed; the argument is the seconds it would still take."""


class Quality(msgspec.Struct, frozen=True):
    """A candidate against its source, over `n_positions` predictions."""

    n_positions: int
    source_perplexity: float
    perplexity: float
    kl: float
    same_top: float
    """Share of positions at which both find the same token likeliest."""
    error: float = 0.0
    """Standard error of the perplexity ratio."""

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.source_perplexity

    def problem(self, perplexity_max: float, kl_max: float) -> str:
        """Which limit it breaks; empty if none."""
        if self.kl > kl_max:
            return f"its KL divergence from the source is {self.kl:.4f}, allowed is {kl_max:g} (model.weights_kl_max)"
        if self.perplexity_ratio > perplexity_max:
            allowed = f"allowed is {perplexity_max:g} (model.weights_perplexity_max)"
            return f"its perplexity is {self.perplexity_ratio:.3f} times the source's, {allowed}"
        return ""


def quality_text() -> str:
    """The text that models are compared on."""
    return files("poise.llama.choosing").joinpath("quality_text.txt").read_text("utf-8")


def compare(
    source: Model,
    candidate: Model,
    threads: int = 0,
    kl_max: float = inf,
    limit_s: float = inf,
    progress: Callable[[float], None] = lambda _: None,
    kv_type: str = "f16",
) -> Quality:
    """Let both read the text, in turns of 64 tokens. Stops early where the divergence is hopeless. Raises TooSlow.

    `kv_type` is of the candidate's KV cells: to judge another type, source and candidate are the same model."""
    windows = _windows(source)
    chunks = [(w, start) for w, window in enumerate(windows) for start in range(0, len(window) - 1, CHUNK)]
    sums = _Sums()
    deadline = time.perf_counter() + limit_s
    quickest_s = inf
    with _reader(source, threads) as one, _reader(candidate, threads, kv_type) as other:
        for done, (w, start) in enumerate(chunks):
            began = time.perf_counter()
            tokens = windows[w][start : start + CHUNK]
            known = windows[w][start + 1 : start + CHUNK + 1]
            skip = max(0, UNCOUNTED - start)
            sums.add(_read(one, start, tokens), _read(other, start, tokens), known, skip)
            now = time.perf_counter()
            quickest_s = min(quickest_s, now - began)
            left_s = (len(chunks) - done - 1) * quickest_s
            if done and now + left_s > deadline:  # the first chunk pages the weights in: it tells nothing
                raise TooSlow(left_s)
            progress((done + 1) / len(chunks))
            if done and sums.quality.kl > HOPELESS * kl_max:
                break
    return sums.quality


def _windows(model: Model) -> list[list[int]]:
    """The text in pieces of equal length, each begun as the model wants a text to begin."""
    vocab = model.vocab
    tokens = vocab.tokenize(quality_text(), add_special=False, parse_special=False)
    length = min(WINDOW, (model.context_train or WINDOW) - 1, len(tokens) // WINDOWS)
    begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    stride = len(tokens) // WINDOWS
    return [begin + tokens[w * stride : w * stride + length + 1 - len(begin)] for w in range(WINDOWS)]


def _reader(model: Model, threads: int, kv_type: str = "f16") -> PoolContext:
    """A small context in which a model reads. Quantised cells need flash attention."""
    spec = PoolSpec("quality", 1, WINDOW + CHUNK, flash_attention=kv_type != "f16")
    return PoolContext(model, spec, batch_tokens=CHUNK, threads=threads, kv_type=kv_type, every_position=True)


def _read(context: PoolContext, start: int, tokens: Sequence[int]) -> Floats:
    """Logits of the position after each token; at position 0 it begins anew."""
    if start == 0:
        context.release(0)
    return np.stack(context.compute_every(Row(0, 0, start, tokens, sample=True)))


class _Sums:
    """Figures of each position, chunk by chunk: the logits of a whole text would take too much memory."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.float64]] = []

    def add(self, source: Floats, candidate: Floats, known: Sequence[int], skip: int) -> None:
        """Count the positions from `skip` on for which the next token is known."""
        n = len(known)
        if n <= skip:
            return
        p, q = log_softmax(source[skip:n]), log_softmax(candidate[skip:n])
        at = (np.arange(n - skip), np.asarray(known[skip:]))
        is_same = p.argmax(axis=1) == q.argmax(axis=1)
        self._parts.append(np.array([p[at], q[at], kl_divergence(p, q), is_same], np.float64))

    @property
    def quality(self) -> Quality:
        if not self._parts:
            return Quality(0, 1.0, 1.0, 0.0, 0.0)
        source, candidate, kl, is_same = np.concatenate(self._parts, axis=1)
        return Quality(
            n_positions=len(kl),
            source_perplexity=float(np.exp(-source.mean())),
            perplexity=float(np.exp(-candidate.mean())),
            kl=float(kl.mean()),
            same_top=float(is_same.mean()),
            error=float((source - candidate).std() / np.sqrt(len(kl))),
        )


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities, row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def kl_divergence(p: Floats, q: Floats) -> Floats:
    """From log probabilities `p` to `q`, for each row, over the whole vocabulary."""
    divergence: Floats = (np.exp(p) * (p - q)).sum(axis=1)
    return divergence
