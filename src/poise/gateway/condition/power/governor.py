"""How far the server holds back: readings and policy in, a power state and limits out. Pure: time is passed in.

    full       nothing is held back but what a CPU quota makes necessary
    saving     on battery, in saving hours, over the budget of watts, or warm: pauses between steps, fewer streams, and background
               work pauses
    critical   the battery's reserve is reached, or the trip point of a temperature: background is put away and not taken any
               more; at half the reserve, or with no pause left to be longer, nothing is

What each cause allows is a duty, in millionths of the time: the least of them holds. Battery: a setting. Watts: a PI controller
on the package's power, or where it cannot be read on an estimate from the threads and how busy they were. Heat: a tenth less
every HEAT_STEP_S from the limit on, at once where the hardware has throttled, and back slowly. A quota of less than a core: what
it allows, less the part of the other processes, and less again where its periods are used up all the same. A state is left later
than it is entered, and mains count only when they have been there for a while."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poise.config.serving import PowerSettings
from poise.gateway.condition.power.sources import Kind, Quality, Reading
from poise.scheduler.power import FULL_PPM, NO_LIMITS, Background, PowerLimits

DUTY_MIN_PPM = 100_000
MAINS_STEADY_S = 30.0
RESERVE_MARGIN = 10
WARM_C, CALM_C = 5.0, 3.0
"""Below the trip point this is the limit; so far below the limit again it is over."""
HEAT_STEP_S = 5.0
HEAT_DOWN_PPM, HEAT_UP_PPM, THROTTLED_PPM = 100_000, 20_000, 200_000
WATT_PPM = 150_000
"""Both gains of the controller: change of duty for an error as large as the budget."""
QUOTA_PART_PPM = 800_000
"""Of a quota of less than a core: the rest is for the gateway and the text workers, which are in the same group."""
PERIOD_US = 100_000
"""Of quotas, unless somebody has changed it: a step that is longer than its part of one is cut into pieces by the system."""
USED_UP_PPM = 100_000
"""Part of the periods that may be used up: two steps in one do so by a hair, and without any the quota would not be used."""
PRESSURE_HIGH, PRESSURE_LOW = 10.0, 1.0
PRESSURE_STEP_S, PRESSURE_CALM_S = 5.0, 60.0
RETRY_BATTERY_S, RETRY_HEAT_S, RETRY_DEGREE_S = 600.0, 30.0, 5.0


class PowerState(StrEnum):
    FULL = "full"
    SAVING = "saving"
    CRITICAL = "critical"


class Takes(StrEnum):
    """What new requests are taken."""

    ALL = "all"
    INTERACTIVE = "interactive"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used, by the engine and by new requests, and why. `threads` 0: as many as there are."""

    state: PowerState = PowerState.FULL
    engine: PowerLimits = NO_LIMITS
    threads: int = 0
    takes: Takes = Takes.ALL
    retry_after_s: float = 0.0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """What a judgement is made of. `busy_ppm`: part of the time since the last one in which the engine computed."""

    now_s: float
    readings: Mapping[Kind, Reading]
    minute: int = 0
    """Of the day, local time."""
    interactive: bool = False
    """Somebody waits for an answer."""
    busy_ppm: int = 0
    n_threads: int = 1

    def value(self, kind: Kind) -> float | None:
        reading = self.readings.get(kind)
        return None if reading is None else reading.value


@dataclass(slots=True)
class Governor:
    policy: PowerSettings
    _on_battery: bool = False
    _mains_s: float | None = None
    _reserved: bool = False
    _hot: bool = False
    _over_c: float | None = None
    _heat_ppm: int = FULL_PPM
    _heat_s: float = -HEAT_STEP_S
    _watt_ppm: int = FULL_PPM
    _error_mw: int = 0
    _quota_ppm: int = FULL_PPM
    _store_ppm: int = FULL_PPM
    _store_s: float = 0.0
    _calm_s: float | None = None
    _reasons: list[str] = field(default_factory=list)

    def look(self, seen: Moment) -> Limits:
        """Judge a moment. Moments come in order, about once a second."""
        self._reasons, policy = [], self.policy
        battery = self._battery(seen)
        saves = self._on_battery or self._in_hours(seen.minute)
        heat_ppm, watt_ppm, quota_ppm = self._heat(seen), self._watts(seen), self._quota(seen)
        duty_ppm = min(heat_ppm, watt_ppm, quota_ppm, int(policy.battery_duty * FULL_PPM) if saves else FULL_PPM)
        held_back = min(heat_ppm, watt_ppm) < FULL_PPM
        state = PowerState.SAVING if saves or held_back else PowerState.FULL
        background = Background(policy.battery_background) if saves else Background.RUN
        if held_back and seen.interactive and background is Background.RUN:
            background = Background.PAUSE
        rows, takes, retry_s = policy.battery_streams if saves else 0, Takes.ALL, 0.0
        if self._reserved or self._hot:
            state, background, takes = PowerState.CRITICAL, Background.PARK, Takes.INTERACTIVE
            retry_s = RETRY_BATTERY_S if self._reserved else RETRY_HEAT_S + RETRY_DEGREE_S * ((self._over_c or 0.0) + CALM_C)
            empty = self._reserved and battery is not None and 2 * battery <= policy.reserve_percent
            if empty or (self._hot and heat_ppm <= DUTY_MIN_PPM):
                takes = Takes.NONE
        quota, threads = seen.value(Kind.QUOTA), policy.battery_threads if saves else 0
        step_us = int(quota * PERIOD_US * QUOTA_PART_PPM / FULL_PPM) if quota is not None and quota < 1 else 0
        if quota is not None:
            threads = min(threads or 1024, max(1, int(quota)))
        engine = PowerLimits(max(DUTY_MIN_PPM, duty_ppm), rows, background, step_us, self._store(seen))
        return Limits(state, engine, threads, takes, retry_s, tuple(self._reasons))

    def _battery(self, seen: Moment) -> float | None:
        """Loss of the mains counts at once, their return when it lasts. An unknown figure changes nothing."""
        mains, battery = seen.value(Kind.MAINS), seen.value(Kind.BATTERY)
        if mains is not None and not mains:
            self._on_battery, self._mains_s = True, None
        elif mains:
            self._mains_s = seen.now_s if self._mains_s is None else self._mains_s
            if seen.now_s - self._mains_s >= MAINS_STEADY_S:
                self._on_battery = False
        if not self._on_battery or not self.policy.reserve_percent:
            self._reserved = False
        elif battery is not None:
            self._reserved = battery <= self.policy.reserve_percent + self._reserved * RESERVE_MARGIN
        if self._on_battery:
            charge = "" if battery is None else f", {battery:.0f} %"
            self._reasons.append(f"on battery{charge}" + " (reserve)" * self._reserved)
        return battery

    def _in_hours(self, minute: int) -> bool:
        for span in self.policy.hours:
            begin, end = (int(time[:2]) * 60 + int(time[3:]) for time in span.split("-"))
            if begin <= minute < end or (end <= begin and (minute >= begin or minute < end)):
                self._reasons.append(f"saving hours {span}")
                return True
        return False

    def _heat(self, seen: Moment) -> int:
        celsius, trip, throttled = seen.value(Kind.TEMPERATURE), seen.value(Kind.TRIP), bool(seen.value(Kind.THROTTLED))
        limit_c = self.policy.max_celsius or (trip - WARM_C if trip is not None else None)
        over_c = None if celsius is None or limit_c is None else celsius - limit_c
        since_s, change = seen.now_s - self._heat_s, 0
        if throttled and since_s >= 1.0:
            change = -THROTTLED_PPM
        elif since_s >= HEAT_STEP_S and not throttled:
            is_cool = over_c is None or over_c < -CALM_C
            change = (
                HEAT_UP_PPM * (self._heat_ppm < FULL_PPM) if is_cool else -HEAT_DOWN_PPM * (over_c is not None and over_c >= 0)
            )
        if change:
            self._heat_ppm, self._heat_s = max(DUTY_MIN_PPM, min(FULL_PPM, self._heat_ppm + change)), seen.now_s
        self._over_c = over_c
        self._hot = over_c is not None and over_c >= (-CALM_C if self._hot else WARM_C)
        if self._heat_ppm < FULL_PPM:
            shown = "" if celsius is None else f": {celsius:.0f} C" + (f", the limit is {limit_c:.0f}" if limit_c else "")
            self._reasons.append(("the hardware throttles" if throttled else "heat") + shown)
        return self._heat_ppm

    def _watts(self, seen: Moment) -> int:
        budget_mw = int(self.policy.max_watts * 1000)
        if not budget_mw:
            return FULL_PPM
        watts = power(seen, self.policy)
        if watts.value is None:
            self._reasons.append("power.max_watts: no power can be read, and there is no watts_per_thread")
            return FULL_PPM
        error_mw = budget_mw - int(watts.value * 1000)
        change = (WATT_PPM * (error_mw - self._error_mw) + WATT_PPM * error_mw) // budget_mw
        self._error_mw = error_mw
        self._watt_ppm = max(DUTY_MIN_PPM, min(FULL_PPM, self._watt_ppm + change))
        if self._watt_ppm < FULL_PPM:
            self._reasons.append(f"{watts.value:.1f} W ({watts.quality}), the budget is {self.policy.max_watts:g}")
        return self._watt_ppm

    def _quota(self, seen: Moment) -> int:
        """Steps that use a period's quota up stand still with their tokens until the next one: better to pause between steps."""
        quota, throttled = seen.value(Kind.QUOTA), seen.value(Kind.QUOTA_THROTTLED)
        if quota is None:
            self._quota_ppm = FULL_PPM
            return FULL_PPM
        most = min(FULL_PPM, int(quota * QUOTA_PART_PPM)) if quota < 1 else FULL_PPM
        if throttled is not None:
            self._quota_ppm += (USED_UP_PPM - int(throttled * FULL_PPM)) // 10
        self._quota_ppm = max(most // 2, DUTY_MIN_PPM, min(most, self._quota_ppm))
        return self._quota_ppm

    def _store(self, seen: Moment) -> int:
        """Halved while memory is short, before the kernel has to end a process; doubled when it has been at ease for a while."""
        pressure = seen.value(Kind.PRESSURE_MEMORY)
        if pressure is None:
            return self._store_ppm
        if pressure >= PRESSURE_LOW:
            self._calm_s = None
            if pressure >= PRESSURE_HIGH and seen.now_s - self._store_s >= PRESSURE_STEP_S:
                self._store_ppm, self._store_s = self._store_ppm // 2, seen.now_s
        else:
            self._calm_s = seen.now_s if self._calm_s is None else self._calm_s
            if self._store_ppm < FULL_PPM and seen.now_s - self._calm_s >= PRESSURE_CALM_S:
                self._store_ppm, self._calm_s = min(FULL_PPM, max(FULL_PPM // 8, 2 * self._store_ppm)), seen.now_s
        if self._store_ppm < FULL_PPM:
            self._reasons.append(f"memory pressure {pressure:.0f} %: {self._store_ppm // 10_000} % of the host store's budget")
        return self._store_ppm


def power(seen: Moment, policy: PowerSettings) -> Reading:
    """Power of the packages, measured or else estimated from busy threads."""
    if (reading := seen.readings.get(Kind.PACKAGE_POWER)) is not None and reading.value is not None:
        return reading
    if policy.watts_per_thread:
        watts = policy.watts_per_thread * seen.n_threads * seen.busy_ppm / FULL_PPM
        return Reading(Kind.PACKAGE_POWER, watts, 0.0, Quality.ESTIMATED)
    return Reading(Kind.PACKAGE_POWER, None, 0.0, Quality.ABSENT)
