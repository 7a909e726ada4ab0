"""Power and energy as /metrics shows them: by source, and with how good the figure is. What cannot be read is not a number."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STATES = ("full", "saving", "critical")
_SOURCES = ("package_power", "gpu_power", "battery_power")
_WAITS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PowerMetrics:
    """Of one gateway, in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "From the arrival of a request to its first token, where the model's pages had been given back before it."
        self.woken = Histogram("poise_woken_first_token_seconds", text, buckets=_WAITS_S, registry=registry).observe
        text = "Times that an idle model's pages were given back."
        self.released = Counter("poise_idle_releases", text, registry=registry).inc
        self._state = Gauge("poise_power_state", "1 for the present state of power, else 0.", ("state",), registry=registry)
        self._duty = Gauge("poise_power_duty", "Part of the time in which steps may be computed.", registry=registry)
        text = "Power by source; with the quality absent it is not a number."
        self._watts = Gauge("poise_power_watts", text, ("source", "quality"), registry=registry)
        text = "Energy by source, since the server's start, of the times in which it was known."
        self._joules = Counter("poise_energy_joules", text, ("source", "quality"), registry=registry)
        self.stands(STATES[0], 1.0, dict.fromkeys(_SOURCES, (None, "absent")))

    def stands(self, state: str, duty: float, watts: dict[str, tuple[float | None, str]]) -> None:
        """How it is now. `watts` by source, with the quality; None where there is no figure."""
        for name in STATES:
            self._state.labels(name).set(name == state)
        self._duty.set(duty)
        self._watts.clear()
        for source, (value, quality) in watts.items():
            self._watts.labels(source, quality).set(math.nan if value is None else value)

    def spent(self, source: str, quality: str, joules: float) -> None:
        self._joules.labels(source, quality).inc(joules)
