"""Readings of hosts that are written down as files: laptops, small boards, containers, and files that lie."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from poise.gateway.condition.power.sampling import AGE_MAX_S, STUCK_S, Sampling
from poise.gateway.condition.power.sources import GAP_S, UNITS, Found, Kind, Probe, Quality, Sources
from tests.gateway.condition.power import hosts
from tests.gateway.condition.power.hosts import AC, BAT, CPU, RAPL, ZONE, write

K = Kind


class Host:
    """A host whose sources are read at moments of a test's choosing."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root = write(root, files)
        self.now_s = 100.0
        self._probes = Sources(root).probes()

    def read(self, after_s: float = 1.0) -> Found:
        self.now_s += after_s
        return {kind: value for probe in self._probes for kind, value in probe.read(self.now_s).items()}

    def change(self, files: dict[str, str], after_s: float = 1.0) -> Found:
        write(self.root, files)
        return self.read(after_s)


def test_a_laptop(tmp_path: Path) -> None:
    """Of the mouse's battery and the radio's temperature nothing is taken; the nested group's quota is found."""
    host = Host(tmp_path, hosts.LAPTOP)
    first = host.read()
    assert first == {
        K.MAINS: 0.0, K.BATTERY: 71.0, K.BATTERY_POWER: 9.5, K.TEMPERATURE: 83.0, K.TRIP: 95.0, K.CLOCK: 0.5,
        K.PRESSURE_CPU: 12.5, K.PRESSURE_MEMORY: 33.0, K.PRESSURE_IO: 1.0, K.QUOTA: 1.5,
    }  # fmt: skip
    stat = "sys/fs/cgroup/user.slice/cpu.stat"
    second = host.change({RAPL + "energy_uj": "31000000\n", stat: "nr_periods 110\nnr_throttled 13\n"}, after_s=2.0)
    assert second[K.PACKAGE_POWER] == pytest.approx(15.0)
    assert second[K.THROTTLED] == 0.0
    assert second[K.QUOTA_THROTTLED] == pytest.approx(0.3)
    assert host.change({CPU + "0/thermal_throttle/core_throttle_count": "5\n"})[K.THROTTLED] == 1.0


def test_an_amd_host(tmp_path: Path) -> None:
    """No zones and no trip points: the processor's own chip says how warm it is."""
    host = Host(tmp_path, hosts.AMD)
    assert host.read() == {K.TEMPERATURE: 61.5}
    assert host.change({RAPL + "energy_uj": "110000000\n"}) == {K.TEMPERATURE: 61.5, K.PACKAGE_POWER: pytest.approx(45.0)}


def test_a_raspberry_pi(tmp_path: Path) -> None:
    """Its firmware says what it holds back now (bits 0 to 3), and what it did once (from bit 16 on)."""
    host = Host(tmp_path, hosts.PI)
    assert host.read() == {K.TEMPERATURE: 79.388, K.TRIP: 80.0, K.THROTTLED: 1.0, K.CLOCK: 0.625}
    assert host.change({"sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n"})[K.THROTTLED] == 0.0


def test_a_container(tmp_path: Path) -> None:
    """A group within the one that has the quota (version 1)."""
    host = Host(tmp_path, hosts.CONTAINER)
    assert host.read() == {K.QUOTA: 0.5}
    stat = {"sys/fs/cgroup/cpu/docker/x/cpu.stat": "nr_periods 1188\nnr_throttled 1179\n"}
    assert host.change(stat) == {K.QUOTA: 0.5, K.QUOTA_THROTTLED: 0.5}


def test_a_virtual_machine_has_nearly_nothing(tmp_path: Path) -> None:
    """And what it has not is absent, never 0."""
    assert Host(tmp_path, hosts.VM).read() == {K.PRESSURE_CPU: 0.0}
    sampling = Sampling(Sources(tmp_path).probes())
    sampling.read()
    readings = sampling.readings()
    assert list(readings) == list(Kind) == list(UNITS)
    absent = {kind for kind, reading in readings.items() if reading.quality is Quality.ABSENT}
    assert absent == set(Kind) - {K.PRESSURE_CPU}
    assert all((reading.value is None) == (kind in absent) for kind, reading in readings.items())


def test_counters_wrap_and_gaps_say_nothing(tmp_path: Path) -> None:
    """A difference is taken modulo the range; after a long pause there may have been several."""
    host = Host(tmp_path, hosts.AMD)
    host.change({RAPL + "energy_uj": "65532600987\n"})
    assert host.change({RAPL + "energy_uj": "19990000\n"})[K.PACKAGE_POWER] == pytest.approx(20.0)
    assert K.PACKAGE_POWER not in host.change({RAPL + "energy_uj": "50000000\n"}, after_s=GAP_S + 1)
    assert host.change({RAPL + "energy_uj": "60000000\n"})[K.PACKAGE_POWER] == pytest.approx(10.0)
    assert K.PACKAGE_POWER not in host.change({RAPL + "energy_uj": "5000000\n", RAPL + "max_energy_range_uj": ""})


def test_energy_that_cannot_be_read_is_absent(tmp_path: Path) -> None:
    """As for everybody but root since Linux 5.10; and half of two packages is not passed off as the whole."""
    second = {name.replace("rapl:0/", "rapl:1/"): text for name, text in hosts.AMD.items() if "rapl" in name}
    host = Host(tmp_path, hosts.AMD | second | {RAPL.replace(":0", ":1") + "name": "package-1\n"})
    host.read()
    (tmp_path / RAPL / "energy_uj").unlink()
    (tmp_path / RAPL / "energy_uj").mkdir()
    assert K.PACKAGE_POWER not in host.read()


@pytest.mark.parametrize("text", ["", "\n", "n/a\n", "-274000\n", "999000\n", "\xff\xfe"])
def test_nonsense_is_absent(tmp_path: Path, text: str) -> None:
    """Sensors that are not there say so in many ways."""
    names = (ZONE + "1/temp", BAT + "capacity", BAT + "power_now", CPU + "0/cpufreq/scaling_cur_freq")
    host = Host(tmp_path, {name: content for name, content in hosts.LAPTOP.items() if not name.startswith(ZONE + "0")})
    for name in names:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    found = host.read()
    assert found.get(K.TEMPERATURE) != 0.0
    assert found.get(K.TEMPERATURE, 92.0) == 92.0  # of another zone, or none


def test_mains_without_a_supply_of_its_own(tmp_path: Path) -> None:
    """Then the battery's state says it; two batteries count by what they hold."""
    files = {n: t for n, t in hosts.LAPTOP.items() if n.startswith(BAT)}
    other = {n.replace("BAT0", "BAT1"): t for n, t in files.items()}
    other |= {BAT.replace("0", "1") + "capacity": "11\n", BAT.replace("0", "1") + "energy_full": "150000000\n"}
    host = Host(tmp_path, files | other)
    found = host.read()
    assert (found[K.MAINS], found[K.BATTERY], found[K.BATTERY_POWER]) == (0.0, 26.0, 19.0)
    for n in ("BAT0", "BAT1"):
        write(tmp_path, {f"sys/class/power_supply/{n}/status": "Charging\n"})
    assert host.read()[K.MAINS] == 1.0


def test_mains_that_flap(tmp_path: Path) -> None:
    """Each reading says what is so then; what is made of it is the governor's."""
    supply = Sources(write(tmp_path, hosts.LAPTOP)).supply
    assert supply(1)[K.BATTERY_POWER] == 9.5
    write(tmp_path, {AC + "online": "1\n", BAT + "status": "Charging\n"})
    found = supply(2)
    assert found[K.MAINS] == 1.0
    assert K.BATTERY_POWER not in found
    write(tmp_path, {AC + "online": "0\n", BAT + "status": "Discharging\n", BAT + "power_now": "20000000\n"})
    assert supply(3)[K.BATTERY_POWER] == 20.0


class _Nvml:
    def __init__(self) -> None:
        self.milliwatts = {0: 70_000, 1: 30_500}

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.milliwatts),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetPowerUsage": lambda device: self.milliwatts[device],
        }
        return answers[name]


def test_gpus(tmp_path: Path) -> None:
    """Together; one that no longer answers makes the reading absent."""
    library = _Nvml()
    gpus = Sources(tmp_path, library).gpus
    assert gpus(1) == {K.GPU_POWER: 100.5}
    del library.milliwatts[1]
    assert gpus(2) == {}
    assert Sources(tmp_path, object()).gpus(1) == {}


class _Blocking:
    """A file whose driver does not answer: a pipe that nobody writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reached = threading.Event()

    def read(self, now_s: float) -> Found:
        self.reached.set()
        return {K.CLOCK: float(self.path.read_text())}


def test_a_file_that_blocks_holds_nobody_up(tmp_path: Path) -> None:
    """Whoever looks gets what there is at once; after a while another thread reads the other sources."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    blocking, now_s, done = _Blocking(pipe), [100.0], threading.Event()

    def last(_: float) -> Found:
        done.set()
        return {K.QUOTA: 1.0}

    order: list[Probe] = [
        Sources(write(tmp_path, hosts.LAPTOP)).probes()[0],
        Probe((K.CLOCK,), blocking.read),
        Probe((K.QUOTA,), last),
    ]
    sampling = Sampling(order, clock=lambda: now_s[0])
    sampling.ask()
    assert blocking.reached.wait(10)
    assert sampling.readings()[K.BATTERY].value == 71.0
    assert not done.is_set()
    now_s[0] += STUCK_S / 2
    sampling.ask()
    now_s[0] += STUCK_S
    sampling.ask()
    assert done.wait(10)
    sampling.read()
    assert sampling.readings()[K.QUOTA].value == 1.0
    assert sampling.readings()[K.CLOCK].quality is Quality.ABSENT
    pipe.write_text("1.0")


def test_a_slow_source_is_asked_rarely() -> None:
    """And its reading goes out of date rather than being taken for a new one."""
    now_s, n_reads = [100.0], [0]

    def slow(_: float) -> Found:
        n_reads[0] += 1
        now_s[0] += 0.5
        return {K.CLOCK: 1.0}

    sampling = Sampling([Probe((K.CLOCK,), slow)], clock=lambda: now_s[0])
    for _ in range(40):
        sampling.read()
        now_s[0] += 1.0
    assert n_reads[0] == 4
    assert sampling.readings()[K.CLOCK].age_s == 5.0
    now_s[0] += AGE_MAX_S
    assert sampling.readings()[K.CLOCK].quality is Quality.ABSENT
