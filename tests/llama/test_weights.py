"""Which weights are chosen, and what happens when something is in the way. The measurements are made up here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.config.settings import ModelSettings
from poise.llama.binding.model import Model
from poise.llama.choosing import weights
from poise.llama.choosing.pace import Pace
from poise.llama.choosing.quality import Quality, TooSlow
from poise.llama.choosing.requantise import WeightsFolder
from poise.llama.choosing.weights import AS_IS, SLOW_STARTS, Chooser, to_json, to_text
from poise.llama.files.cachefile import file_digest
from poise.llama.files.formats import FORMATS, WeightFormat, candidates
from poise.llama.files.gguf import GgufHeader, read_header
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, write_gguf

pytestmark = pytest.mark.slow  # a decision depends on the library's version, so llama.cpp has to be there

BF16, Q8, MIXED, Q4 = (wanted.name for wanted in FORMATS)
GOOD, BAD = Quality(1000, 20.0, 20.1, 0.005, 0.96), Quality(100, 20.0, 25.0, 0.3, 0.6)
FAST, FASTER = Pace(1.7, 1.3, 1.6, 1.4, 1.6), Pace(2.0, 1.5, 2.0, 1.7, 2.0)
FASTEST = Pace(2.5, 2.0, 2.5, 2.2, 2.5)
SLOW_ALONE, NO_FASTER = Pace(1.5, 0.8, 1.5, 0.84, 1.5), Pace(1.05, 1.05, 1.05, 1.05, 1.05)


class FakeModel:
    def __init__(self, path: Path) -> None:
        self.path, self.header, self.size_bytes = path, read_header(path), 1
        self.format = path.read_bytes()[-32:].decode("latin-1").strip()

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None: ...


class Lab:
    """Stands in for llama.cpp: what each format is found to be, and what was made and measured."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.found: dict[str, tuple[Quality | Exception, Pace]] = {}
        self.made: list[str] = []
        self.compared: list[str] = []
        self.memory = 1 << 40
        self.fits = True
        self.too_large = ""
        self.system_info = ""
        self.duel: Pace | None = None
        self.quotas: list[float] = []

    def chooser(self, *, progress: Callable[[float], None] = lambda _: None, **model: Any) -> Chooser:
        settings = Settings(model=ModelSettings(**model))
        return Chooser(self.source, settings, self.does_fit, progress, room=lambda: self.memory, quotas=lambda: self.quotas)

    def does_fit(self, path: Path) -> bool:
        return self.fits and not (self.too_large and f"-{self.too_large}-" in path.name)

    def make(self, folder: WeightsFolder, source: GgufHeader, target: Path, wanted: WeightFormat, threads: int) -> None:
        self.made.append(wanted.name)
        target.write_bytes(self.source.read_bytes() + wanted.name.encode().rjust(32))
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        target.with_name(target.name + ".sha256").write_text(f"{digest}  {target.name}\n")

    def compare(self, source: FakeModel, candidate: FakeModel, *_: object) -> Quality:
        self.compared.append(candidate.format)
        quality = self.found[candidate.format][0]
        if isinstance(quality, Exception):
            raise quality
        return quality

    def pace(self, source: FakeModel, candidate: FakeModel, **_: object) -> Pace:
        if source.format in self.made:
            assert self.duel is not None, "two formats were timed against each other"
            return self.duel
        return self.found.get(candidate.format, (BAD, NO_FASTER))[1]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = gguf_bytes(keys=TINY_KEYS, tensors=[("m", (256, 64), 1), ("norm", (256,), 0)])
    lab = Lab(write_gguf(tmp_path / "model.gguf", data))
    monkeypatch.setattr(Model, "load", FakeModel)
    monkeypatch.setattr(weights, "candidates", lambda header, _: candidates(header, lab.system_info))
    monkeypatch.setattr(weights, "compare", lab.compare)
    monkeypatch.setattr(weights, "compare_pace", lab.pace)
    monkeypatch.setattr(
        WeightsFolder, "make", lambda folder, source, target, wanted, n: lab.make(folder, source, target, wanted, n)
    )
    return lab


def files() -> list[str]:
    return sorted(path.name for path in WeightsFolder().folder.glob("[!.]*.gguf"))


def test_the_fastest_of_those_that_pass_is_chosen_once(lab: Lab) -> None:
    """The others are removed; the second start measures nothing and makes nothing."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (GOOD, FASTER), Q4: (BAD, FASTEST)}
    assert lab.chooser().planned().reason == "not decided yet: the next start does it"
    chosen = lab.chooser().choose()
    assert chosen.name == MIXED
    assert chosen.path.read_bytes().endswith(MIXED.encode())
    assert lab.made == [Q8, MIXED, Q4]
    assert lab.compared == [Q4, MIXED], "the fastest is judged first, and none after the one that passes"
    assert files() == [chosen.path.name]
    again = lab.chooser().choose()
    assert again == lab.chooser().planned() == chosen
    assert len(lab.made) == 3
    assert "0.0050 from the file's, and faster here: a request among eight x2.00, alone x1.70 (prompts x2.00, one" in again.reason


def test_where_none_is_as_good_the_source_is_served(lab: Lab) -> None:
    """The limit is named; the figures are kept."""
    lab.found = {Q8: (BAD, FAST), MIXED: (BAD, FASTER), Q4: (BAD, NO_FASTER)}
    chosen = lab.chooser().choose()
    assert (chosen.path, chosen.name) == (lab.source, AS_IS)
    assert "q8_0: its KL divergence from the source is 0.3000, allowed is 0.02 (model.weights_kl_max)" in chosen.reason
    assert lab.compared == [MIXED, Q8], "what is not faster is not judged"
    assert files() == []
    assert lab.chooser().choose() == chosen
    assert lab.compared == [MIXED, Q8], "also a refusal is remembered"


def test_good_weights_that_are_not_faster_are_not_taken(lab: Lab) -> None:
    """Neither slightly faster ones nor those that are slower for a lone request; the next format is tried all the same."""
    lab.found = {Q8: (GOOD, SLOW_ALONE), MIXED: (GOOD, FAST), Q4: (BAD, FASTER)}
    assert lab.chooser().choose().name == MIXED
    lab.found = dict.fromkeys((Q8, MIXED, Q4), (GOOD, NO_FASTER))
    chooser = lab.chooser()
    chooser.forget()
    assert chooser.planned().decision is None
    chosen = chooser.choose()
    assert chosen.name == AS_IS
    assert chosen.reason.count("not faster on this host") == 3
    assert files() == []


def test_what_a_lone_request_may_lose_is_a_setting(lab: Lab) -> None:
    lab.found = {Q8: (GOOD, SLOW_ALONE), MIXED: (BAD, FASTER)}
    refused = lab.chooser().choose()
    assert refused.name == AS_IS
    assert "a lone request has 0.84 of the file's speed, wanted is 0.85 (model.weights_alone_min" in refused.reason
    assert lab.chooser(weights_alone_min=0.8).choose().name == Q8


NEARLY = Pace(2.0, 1.0, 1.5, 1.0, 1.55)


@pytest.mark.parametrize(("ratio", "expected"), [(1.01, Q8), (0.99, BF16)])
def test_gains_that_hardly_differ_are_measured_against_each_other(lab: Lab, ratio: float, expected: str) -> None:
    """They were measured one after the other."""
    lab.system_info = "AVX512_BF16 = 1"
    lab.found = {BF16: (GOOD, NEARLY), Q8: (GOOD, FAST), MIXED: (BAD, FAST)}
    lab.duel = Pace(ratio, ratio, ratio, ratio, ratio)
    chosen = lab.chooser().choose()
    assert chosen.name == expected
    assert files() == [chosen.path.name]


def test_without_memory_for_both_their_gains_decide(lab: Lab) -> None:
    lab.memory = 0
    slower, faster = (weights.Trial(name, "", GOOD, pace, 1) for name, pace in ((BF16, NEARLY), (Q8, FAST)))
    assert lab.chooser()._is_faster("", faster, slower)
    assert not lab.chooser()._is_faster("", slower, faster)


def test_a_format_without_room_is_passed_over(lab: Lab) -> None:
    """The next one is smaller. It is remembered why, and with what was found the next start measures nothing."""
    lab.system_info = "AVX512_BF16 = 1"
    lab.found = {BF16: (GOOD, FASTER), Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    lab.too_large = BF16
    chosen = lab.chooser().choose()
    assert chosen.name == Q8
    assert "bf16 does not fit into memory with these settings" in to_text(lab.source, chosen)
    assert lab.chooser().choose() == chosen
    assert lab.made == [BF16, Q8, MIXED, Q4]
    assert files() == [chosen.path.name]


def test_a_refusal_beside_a_format_without_room_is_not_measured_for_ever(lab: Lab) -> None:
    """Room may come, so the next starts try again; but each try measures what there was room for, so their number is limited."""
    lab.system_info = "AVX512_BF16 = 1"
    lab.found = {BF16: (GOOD, FASTER), Q8: (BAD, FAST)}
    lab.too_large = BF16
    for n_compared in range(1, SLOW_STARTS + 1):
        assert lab.chooser().planned().decision is None
        assert lab.chooser().choose().name == AS_IS
        assert lab.compared == [Q8] * n_compared
    assert "bf16 does not fit" in lab.chooser().choose().reason
    assert len(lab.compared) == SLOW_STARTS
    chooser = lab.chooser()
    chooser.forget()
    lab.too_large = ""
    assert chooser.choose().name == BF16


def test_other_limits_and_other_contents_are_decided_anew(lab: Lab) -> None:
    """The decision belongs to the source's bytes and to the settings."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    first = lab.chooser().choose()
    assert lab.chooser(weights_kl_max=0.5).choose().name == Q8
    assert len(lab.compared) == 4
    lab.source.write_bytes(lab.source.read_bytes()[:-1] + b"\x07")
    os.utime(lab.source, ns=(1, 1))
    second = lab.chooser().choose()
    assert second.path != first.path
    assert len(lab.compared) == 6


def test_a_damaged_file_is_made_again_without_measuring(lab: Lab) -> None:
    """And a deleted one."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    path = lab.chooser().choose().path
    for harm in (lambda: path.write_bytes(b"damaged"), path.unlink):
        harm()
        assert lab.chooser().planned().path == lab.source
        assert lab.chooser().choose().path == path
    assert lab.made == [Q8, MIXED, Q4, Q8, Q8]
    assert lab.compared == [MIXED, Q8]


def test_an_engine_in_the_place_of_another_has_its_weights_without_measuring(lab: Lab) -> None:
    """Whatever would be chosen now, also under a new time of modification; the file is made again where it is gone."""
    assert lab.chooser().as_before(AS_IS).path == lab.source
    again = lab.chooser().as_before(Q8)
    assert (again.name, lab.made) == (Q8, [Q8])
    os.utime(lab.source, ns=(1, 1))
    assert lab.chooser().as_before(Q8).path == again.path
    again.path.unlink()
    assert lab.chooser().as_before(Q8).path == again.path
    assert (lab.made, lab.compared) == ([Q8, Q8], [])
    lab.fits = False
    assert lab.chooser().as_before(Q8).path == lab.source


def test_what_is_in_the_way_is_not_remembered(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Memory, disk, or a folder that cannot be written: the source now, one line in the log, and another attempt next time."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    lab.memory = 0
    assert "memory does not hold the source and q8_0 at once" in lab.chooser().choose().reason
    lab.memory, lab.fits = 1 << 40, False
    assert "does not fit into memory with these settings" in lab.chooser().choose().reason
    assert len(caplog.records) == 2
    assert files() == []
    lab.fits = True
    assert lab.chooser().choose().name == Q8
    lab.fits = False
    chosen = lab.chooser().choose()
    assert (chosen.path, chosen.reason) == (lab.source, "q8_0 does not fit into memory now")
    lab.fits = True
    assert lab.chooser().choose().name == Q8


def test_a_cache_that_cannot_be_written_serves_the_source(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    chosen = lab.chooser().choose()
    assert (chosen.path, chosen.name) == (lab.source, AS_IS)
    assert "cannot be written" in chosen.reason


def test_a_host_that_is_too_slow_to_check_serves_the_source(lab: Lab) -> None:
    """It may have been busy: the next starts try again. After some, it is remembered: every start would try for minutes."""
    lab.found = {Q8: (TooSlow(300.0), FAST)}
    for n_compared in range(1, SLOW_STARTS + 1):
        assert lab.chooser().planned().decision is None
        assert "would take 300 s more" in lab.chooser().choose().reason
        assert lab.compared == [Q8] * n_compared
    assert "would take 300 s more" in lab.chooser().planned().reason
    lab.chooser().choose()
    assert len(lab.compared) == SLOW_STARTS


def test_what_is_too_slow_under_a_quota_is_not_tried_again(lab: Lab) -> None:
    """Its next start would take as long, and find the same."""
    lab.quotas, lab.found = [0.5], {Q8: (TooSlow(300.0), FAST)}
    chosen = lab.chooser().choose()
    assert lab.chooser().choose() == chosen
    assert (chosen.name, lab.compared) == (AS_IS, [Q8])


def test_a_host_that_was_busy_at_its_first_start_decides_at_the_next(lab: Lab) -> None:
    lab.found = {Q8: (TooSlow(300.0), FAST)}
    assert lab.chooser().choose().name == AS_IS
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    assert lab.chooser().choose().name == Q8
    assert lab.chooser().planned().name == Q8


@pytest.mark.parametrize(("model", "why"), [({"weights": "as-is"}, "as-is"), ({}, "Q4_0 already")])
def test_nothing_is_made_where_it_does_not_apply(lab: Lab, model: dict[str, Any], why: str) -> None:
    """By the setting, or by what the file is."""
    if not model:
        write_gguf(lab.source, gguf_bytes(tensors=[("m", (256, 64), 2)]) + bytes(1 << 16))
    chosen = lab.chooser(**model).choose()
    assert (chosen.path, chosen.name) == (lab.source, AS_IS)
    assert why in chosen.reason
    assert not WeightsFolder().folder.exists()


def test_somebody_who_decided_while_this_one_waited_is_believed(lab: Lab) -> None:
    """Two starts at once measure once."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    first = lab.chooser()
    second = lab.chooser()
    assert second.planned().decision is None
    expected = first.choose()
    digest = file_digest(lab.source)
    with second.folder.locked():
        assert second._choose(digest) == expected
    assert lab.compared == [MIXED, Q8]


def test_a_decision_that_cannot_be_read_is_made_again(lab: Lab) -> None:
    """The cache may hold anything."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    chooser = lab.chooser()
    chooser.choose()
    entries = json.loads(chooser.decisions.read_text())
    for bad in ({"name": "q3_x", "reason": ""}, {"name": 7}, None):
        chooser.decisions.write_text(json.dumps(dict.fromkeys(entries, bad)))
        assert chooser.planned().decision is None
        assert chooser.choose().name == Q8


def test_the_figures_are_shown(lab: Lab) -> None:
    """For people and for programs."""
    lab.found = {Q8: (GOOD, FAST), MIXED: (BAD, FASTER)}
    chosen = lab.chooser().choose()
    text = to_text(lab.source, chosen)
    for piece in (f"file: {chosen.path}", "x1.0050", "KL divergence 0.3000", "same likeliest token 60.0%", "not taken", "passed"):
        assert piece in text
    document = json.loads(to_json(lab.source, chosen))
    assert document["served"] == Q8
    assert [trial["problem"] == "" for trial in document["trials"]] == [True, False, False]
    assert document["trials"][0]["pace"]["prompt"] == 1.7
