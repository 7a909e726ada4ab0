"""What the host says of its power, heat, pressure and quotas, as readings that say how good they are.

Every kind of reading is always there: one that cannot be made is `absent`, and never a zero. Files are looked for below a root,
so that tests have hosts of their own. A file may block, because some drivers ask the firmware: all of this belongs into a thread
(`sampling`)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from poise.llama.files.cgroups import cpu_quotas, folders, text_of

GAP_S = 20.0
"""Counters that were not read for longer may have wrapped, or more than once: their difference says nothing."""
WATTS_MAX = 2000.0
"""More is no power but a counter that was set back."""
CELSIUS = (-20.0, 130.0)
"""What is outside is a sensor that is not there."""
_CPU_ZONES = re.compile(r"pkg|cpu|soc|core|acpi|tctl|tdie|k10|zenpower", re.I)
_PI_BITS = 0b1111
"""Under-voltage, capped frequency, throttled and soft limit, as they are now."""


class Quality(StrEnum):
    MEASURED = "measured"
    ESTIMATED = "estimated"
    ABSENT = "absent"


class Kind(StrEnum):
    MAINS = "mains"
    BATTERY = "battery"
    BATTERY_POWER = "battery_power"
    TEMPERATURE = "temperature"
    TRIP = "trip"
    """The first temperature at which the system acts by itself."""
    THROTTLED = "throttled"
    """Whether the hardware has throttled since the last reading."""
    CLOCK = "clock"
    PACKAGE_POWER = "package_power"
    GPU_POWER = "gpu_power"
    PRESSURE_CPU = "pressure_cpu"
    PRESSURE_MEMORY = "pressure_memory"
    PRESSURE_IO = "pressure_io"
    QUOTA = "quota"
    QUOTA_THROTTLED = "quota_throttled"
    """Share of the quota's periods since the last reading in which it was used up."""


UNITS = dict(zip(Kind, ("bool", "%", "W", "C", "C", "bool", "share", "W", "W", "%", "%", "%", "cores", "share"), strict=True))


@dataclass(frozen=True, slots=True)
class Reading:
    """`age_s`: how long ago it was made. `value` is None exactly where it is absent."""

    kind: Kind
    value: float | None
    age_s: float = 0.0
    quality: Quality = Quality.MEASURED

    @property
    def unit(self) -> str:
        return UNITS[self.kind]


Found = dict[Kind, float]


class Probe(NamedTuple):
    """One source. `read` gives what it could read; it is given the moment, of a monotonic clock."""

    kinds: tuple[Kind, ...]
    read: Callable[[float], Found]


def _number(path: Path) -> float | None:
    try:
        return float(text_of(path))
    except ValueError:
        return None


def _celsius(path: Path) -> float | None:
    number = _number(path)
    return None if number is None or not CELSIUS[0] < number / 1000 < CELSIUS[1] else number / 1000


class Sources:
    """Of the host whose files are below `root`. `nvml`: the module of NVIDIA's devices."""

    def __init__(self, root: Path = Path("/"), nvml: Any = None) -> None:
        self._root, self._nvml, self._devices = root, nvml, list[Any]()
        self._counters: dict[str, tuple[float, float]] = {}
        try:
            if nvml is None:
                import pynvml  # type: ignore[import-not-found,unused-ignore]

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())]
        except Exception:  # whatever a driver that is not whole says: there are none to be asked
            self._devices = []

    def probes(self) -> list[Probe]:
        pressures = (Kind.PRESSURE_CPU, Kind.PRESSURE_MEMORY, Kind.PRESSURE_IO)
        return [
            Probe((Kind.MAINS, Kind.BATTERY, Kind.BATTERY_POWER), self.supply),
            Probe((Kind.TEMPERATURE, Kind.TRIP), self.heat),
            Probe((Kind.THROTTLED, Kind.CLOCK), self.throttling),
            Probe((Kind.PACKAGE_POWER,), self.package),
            Probe(pressures, self.pressure),
            Probe((Kind.QUOTA, Kind.QUOTA_THROTTLED), self.quota),
            Probe((Kind.GPU_POWER,), self.gpus),
        ]

    def _files(self, pattern: str) -> list[Path]:
        try:
            return sorted(self._root.glob(pattern))
        except OSError:
            return []

    def _grown(self, name: str, value: float, now_s: float, wraps: float = 0.0) -> tuple[float, float] | None:
        """By how much a counter has grown, and in how many seconds. None: there is nothing that it can be compared with. `wraps`:
        the value after which it begins again at 0; 0: it does not."""
        before, self._counters[name] = self._counters.get(name), (value, now_s)
        if before is None or not 0 < now_s - before[1] <= GAP_S:
            return None
        growth = value - before[0]
        growth += wraps if growth < 0 else 0.0
        return (growth, now_s - before[1]) if growth >= 0 else None

    def supply(self, _: float) -> Found:
        """Batteries and mains. Batteries of mice and keyboards are not the host's."""
        online, levels, states, watts = list[bool](), list[tuple[float, float]](), list[str](), list[float]()
        for supply in self._files("sys/class/power_supply/*"):
            kind = text_of(supply / "type").strip()
            if kind == "Battery" and text_of(supply / "scope").strip() != "Device":
                states.append(text_of(supply / "status").strip())
                if (level := _number(supply / "capacity")) is not None:
                    levels.append((level, _number(supply / "energy_full") or _number(supply / "charge_full") or 1.0))
                power, current = _number(supply / "power_now"), _number(supply / "current_now")
                if power is None and current is not None:
                    power = current * (_number(supply / "voltage_now") or 0.0) / 1e6
                if states[-1] == "Discharging" and power:
                    watts.append(abs(power) / 1e6)
            elif kind in ("Mains", "USB", "Wireless") and (plugged := _number(supply / "online")) is not None:
                online.append(plugged > 0)
        found: Found = {}
        if levels:
            found[Kind.BATTERY] = sum(level * full for level, full in levels) / sum(full for _, full in levels)
        if online or any(states):
            found[Kind.MAINS] = float(any(online) if online else "Discharging" not in states)
        return found | ({Kind.BATTERY_POWER: sum(watts)} if watts else {})

    def heat(self, _: float) -> Found:
        """The processor's temperature, and the trip point that is nearest to it."""
        places = list(self._zones()) or list(self._chips())
        own = [place for place in places if _CPU_ZONES.search(place[0])] or places
        with_trip = [(trip - celsius, celsius, trip) for _, celsius, trip in own if trip is not None]
        if with_trip:
            _, celsius, trip = min(with_trip)
            return {Kind.TEMPERATURE: celsius, Kind.TRIP: trip}
        return {Kind.TEMPERATURE: max(celsius for _, celsius, _ in own)} if own else {}

    def _zones(self) -> Iterator[tuple[str, float, float | None]]:
        for zone in self._files("sys/class/thermal/thermal_zone*"):
            trips = dict[str, float]()
            for kind in zone.glob("trip_point_*_type"):
                celsius = _celsius(kind.with_name(kind.name.removesuffix("type") + "temp"))
                if celsius is not None and celsius > 0:
                    name = text_of(kind).strip()
                    trips[name] = min(celsius, trips.get(name, celsius))
            trip = next((trips[name] for name in ("passive", "hot", "critical") if name in trips), None)  # "active": a fan
            if (found := _celsius(zone / "temp")) is not None:
                yield text_of(zone / "type"), found, trip

    def _chips(self) -> Iterator[tuple[str, float, float | None]]:
        for sensor in self._files("sys/class/hwmon/*/temp*_input"):
            limits = [_celsius(sensor.with_name(sensor.name.replace("input", n))) for n in ("max", "crit")]
            if (found := _celsius(sensor)) is not None:
                yield text_of(sensor.with_name("name")), found, limits[0] or limits[1]

    def throttling(self, now_s: float) -> Found:
        """What the hardware does by itself: counters of throttled cores, a Raspberry Pi's flags, the clock."""
        found, counters = Found(), self._files("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        counts = [n for path in counters if (n := _number(path)) is not None]
        if counts and (grown := self._grown("throttle", sum(counts), now_s)) is not None:
            found[Kind.THROTTLED] = float(grown[0] > 0)
        flags = text_of(self._root / "sys/devices/platform/soc/soc:firmware/get_throttled").strip()
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", flags):
            found[Kind.THROTTLED] = float(int(flags, 16) & _PI_BITS > 0)
        clocks = list[float]()
        for cpu in self._files("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
            now, most = _number(cpu / "scaling_cur_freq"), _number(cpu / "cpuinfo_max_freq")
            clocks += [now / most] if now is not None and most else []
        return found | ({Kind.CLOCK: sum(clocks) / len(clocks)} if clocks else {})

    def package(self, now_s: float) -> Found:
        """Power of the processor's packages, from their energy counters: root's to read, unless the administrator lets others."""
        watts = list[float]()
        for zone in self._files("sys/class/powercap/intel-rapl:*"):
            if zone.name.count(":") == 1 and text_of(zone / "name").startswith("package"):
                energy, wraps = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
                grown = None if energy is None else self._grown(zone.name, energy, now_s, wraps or 0.0)
                if grown is None or grown[0] / grown[1] / 1e6 > WATTS_MAX:
                    return {}  # a part of the whole would pass for it
                watts.append(grown[0] / grown[1] / 1e6)
        return {Kind.PACKAGE_POWER: sum(watts)} if watts else {}

    def pressure(self, _: float) -> Found:
        """Share of the last ten seconds in which something waited for a resource: of the host or of the own group, whichever is
        more."""
        found, groups = Found(), folders("", self._root / "proc", self._root / "sys/fs/cgroup")
        own = next((folder for version, folder in groups if version == 2), self._root)
        for kind in (Kind.PRESSURE_CPU, Kind.PRESSURE_MEMORY, Kind.PRESSURE_IO):
            name = kind.value.removeprefix("pressure_")
            texts = [text_of(self._root / "proc/pressure" / name), text_of(own / f"{name}.pressure")]
            shares = [float(m[1]) for text in texts if (m := re.match(r"some avg10=(\d+(?:\.\d+)?)", text))]
            found |= {kind: max(shares)} if shares else {}
        return found

    def quota(self, now_s: float) -> Found:
        """The tightest CPU quota of the control groups that hold this process; in which share of its periods one was used up."""
        quotas, shares = list(cpu_quotas(self._root / "proc", self._root / "sys/fs/cgroup")), list[float]()
        for _, folder in quotas:
            rows = dict(row.split(maxsplit=1) for row in text_of(folder / "cpu.stat").splitlines() if " " in row)
            names = ("nr_periods", "nr_throttled")
            if all(rows.get(name, "").strip().isdigit() for name in names):
                periods, throttled = (self._grown(f"{folder}/{name}", int(rows[name]), now_s) for name in names)
                if periods is not None and throttled is not None:
                    shares.append(throttled[0] / periods[0] if periods[0] else 0.0)
        found = {Kind.QUOTA: min(quota for quota, _ in quotas)} if quotas else {}
        return found | ({Kind.QUOTA_THROTTLED: max(shares)} if shares else {})

    def gpus(self, _: float) -> Found:
        try:
            watts = [self._nvml.nvmlDeviceGetPowerUsage(device) / 1000 for device in self._devices]
        except Exception:  # its errors are of its own kind
            return {}
        return {Kind.GPU_POWER: sum(watts)} if watts else {}
