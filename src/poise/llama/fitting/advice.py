"""What to change so that a model and its pools fit: the single change that loses least, or a combination where none will do.

A single change that loses more than LOSS_SINGLE_MAX (slots cut to a tenth, say) competes with the combinations.

A change is tried as the operator would make it, with --set on top of everything else: one that clashes with another set value
is none. What gives way to it counts as lost, too. Loss is a number without a unit; it only ranks:

    store.budget_mb       0.3 x the share given up   speed of what comes back, nothing else
    engine.batch_tokens   0.1 x halvings             prompts compute in smaller pieces
    engine.kv_type        0.35                       flash attention everywhere, which is slower for long prompts on a CPU
    pools.*.slots         1.0 x the share given up   fewer at once, the others wait
    pools.*.slot_tokens   2.0 x the share given up   requests that are not possible any more

A combination is made greedily: the changes that free most for their loss go as far as half of what there is, in a second round
as far as they can, until it fits; then each is taken back as far as the others allow, the one that loses most first.

Smaller values need less memory, and are the ones that clash: so both bounds of what is possible are found by bisection."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log2

from poise.config import ConfigError, LoadedSettings, Settings
from poise.llama.files.gguf import GgufHeader
from poise.llama.files.memory import CELLS_STEP, can_quantise_kv

STORE_STEP_MB = 16
QUANTISED = "q8_0"
LOSS_STORE, LOSS_BATCH, LOSS_KV_TYPE, LOSS_SLOTS, LOSS_SLOT_TOKENS = 0.3, 0.1, 0.35, 1.0, 2.0
LOSS_SINGLE_MAX = 1.0

Changes = dict[str, int | str]
Need = Callable[[Settings], int]
"""Bytes that settings need in all."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that can be turned down: its next lower value, the one after it, and so on to the last."""

    key: str
    values: Sequence[int | str]


def advise(loaded: LoadedSettings, header: GgufHeader, need: Need, available: int) -> Changes | None:
    """The changes with which the need is at most `available` bytes; None when there are none."""
    search = _Search(loaded, need, available, header.number("context_length"))
    gentle, all_the_way = (_knobs(loaded.settings, header, gentle=gentle) for gentle in (True, False))
    single = search.single(all_the_way)
    if single is not None and search.loss(single) <= LOSS_SINGLE_MAX:
        return single
    found = [single, search.combination(gentle), search.combination(all_the_way)]
    return min((changes for changes in found if changes is not None), key=search.loss, default=None)


class _Search:
    def __init__(self, loaded: LoadedSettings, need: Need, available: int, context_train: int) -> None:
        self._loaded, self._need, self._available, self._context = loaded, need, available, context_train

    def single(self, knobs: Sequence[Knob]) -> Changes | None:
        found = [changes for knob in knobs if (changes := self._least(knob, {})) is not None]
        return min(found, key=self.loss, default=None)

    def combination(self, knobs: Sequence[Knob]) -> Changes | None:
        changes: Changes = {}
        order = sorted(knobs, key=self._loss_per_byte)
        # Twice, because one change may have to wait for another: the long slots are at least as long as the short ones.
        for knob in [*order, *order]:
            others = {key: value for key, value in changes.items() if key != knob.key}
            enough = self._least(knob, others)
            if enough is not None:
                return self._taken_back(enough, {knob.key: knob for knob in knobs})
            changes = self._most(knob, others) or changes
        return None

    def loss(self, changes: Changes) -> float:
        settings = self._settings(changes)
        return inf if settings is None else loss(self._loaded.settings, settings, self._context)

    def _taken_back(self, changes: Changes, knobs: Mapping[str, Knob]) -> Changes:
        for key in sorted(changes, key=lambda key: self.loss({key: changes[key]}), reverse=True):
            others = {other: value for other, value in changes.items() if other != key}
            changes = others if self._fits(others) else self._least(knobs[key], others) or changes
        return changes

    def _least(self, knob: Knob, others: Changes) -> Changes | None:
        """The smallest change of this setting with which it fits, on top of the others."""
        # One that clashes counts as going far enough, so that the search turns back from it.
        at = bisect_left(knob.values, True, key=lambda value: self._fits({**others, knob.key: value}) is not False)
        if at == len(knob.values):
            return None
        changes = {**others, knob.key: knob.values[at]}
        return changes if self._fits(changes) else None

    def _most(self, knob: Knob, others: Changes) -> Changes | None:
        """The largest change of this setting that does not clash, on top of the others."""
        at = bisect_left(knob.values, True, key=lambda value: self._settings({**others, knob.key: value}) is None)
        return {**others, knob.key: knob.values[at - 1]} if at else None

    def _fits(self, changes: Changes) -> bool | None:
        """None: the changes clash with what is set."""
        settings = self._settings(changes)
        return None if settings is None else self._need(settings) <= self._available

    def _settings(self, changes: Changes) -> Settings | None:
        try:
            return self._loaded.varied(changes).settings
        except ConfigError:
            return None

    def _loss_per_byte(self, knob: Knob) -> float:
        changes = self._most(knob, {})
        settings = self._settings(changes) if changes else None
        if changes is None or settings is None:
            return inf
        freed = self._need(self._loaded.settings) - self._need(settings)
        return self.loss(changes) / freed if freed > 0 else inf


def loss(old: Settings, new: Settings, context_train: int = 0) -> float:
    """What is lost from one to the other. What slots are longer than the trained context (0: unknown) is no loss."""
    longest = context_train or inf
    lost = LOSS_STORE * _share(old.store_mb, new.store_mb)
    lost += LOSS_BATCH * log2(old.engine.batch_tokens / new.engine.batch_tokens)
    lost += LOSS_KV_TYPE * (old.engine.kv_type != new.engine.kv_type)
    for (name, before), (_, after) in zip(old.pools, new.pools, strict=True):
        lost += LOSS_SLOTS * _share(old.n_slots(name), new.n_slots(name))
        lost += LOSS_SLOT_TOKENS * _share(min(before.slot_tokens, longest), min(after.slot_tokens, longest))
    return lost


def _share(old: float, new: float) -> float:
    return 1 - new / old if old else 0.0


def _knobs(settings: Settings, header: GgufHeader, *, gentle: bool) -> list[Knob]:
    """What can be turned down; `gentle` stops at half."""
    divisor, context_train = 2 if gentle else 1 << 20, header.number("context_length")
    halves = [settings.engine.batch_tokens >> n for n in range(1, 9)]
    values: dict[str, Sequence[int | str]] = {
        "store.budget_mb": _below(settings.store_mb, STORE_STEP_MB, 0, divisor),
        "engine.batch_tokens": [n for n in halves if n >= max(32, settings.engine.batch_tokens // divisor)],
    }
    if settings.engine.kv_type == "f16" and can_quantise_kv(header):
        values["engine.kv_type"] = [QUANTISED]
    for name, pool in settings.pools:
        tokens = min(pool.slot_tokens, context_train) if context_train else pool.slot_tokens
        values[f"pools.{name}.slots"] = _below(settings.n_slots(name), 1, 1, divisor)
        values[f"pools.{name}.slot_tokens"] = _below(tokens, CELLS_STEP, CELLS_STEP, divisor)
    return [Knob(key, lower) for key, lower in values.items() if lower]


def _below(value: int, step: int, least: int, divisor: int) -> range:
    """Multiples of `step` below the value, down to the least or to the divided value, whichever is more."""
    return range((value - 1) // step * step, max(least, value // divisor) - 1, -step)
