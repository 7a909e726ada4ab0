"""Power and energy as /metrics shows them: by source, and with how good the figure is. What cannot be read is not a number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STATES = ("full", "saving", "critical")
SOURCES = ("package_power", "gpu_power", "battery_power")
_WAITS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class PowerFigures:
    """How it stands, as whoever governs it says. Watts by source: None where there is no figure; joules by source and quality."""

    state: str = STATES[0]
    duty: float = 1.0
    watts: dict[str, tuple[float | None, str]] = field(default_factory=lambda: dict.fromkeys(SOURCES, (None, "absent")))
    joules: dict[tuple[str, str], float] = field(default_factory=dict)
    n_releases: int = 0


class PowerMetrics:
    """Of one gateway, in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.figures = PowerFigures()
        text = "From the arrival of a request to its first token, where the model's pages had been given back before it."
        self.woken = Histogram("poise_woken_first_token_seconds", text, buckets=_WAITS_S, registry=registry).observe
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Names are checked by those of what is collected now."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """At a scrape."""
        now = self.figures
        state = GaugeMetricFamily("poise_power_state", "1 for the present state of power, else 0.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == now.state))
        text = "Part of the time in which steps may be computed."
        yield from (state, GaugeMetricFamily("poise_power_duty", text, now.duty))
        text = "Power by source; with the quality absent it is not a number."
        watts = GaugeMetricFamily("poise_power_watts", text, labels=["source", "quality"])
        for source, (value, quality) in now.watts.items():
            watts.add_metric([source, quality], math.nan if value is None else value)
        text = "Energy by source, since the server's start, of the times in which it was known."
        joules = CounterMetricFamily("poise_energy_joules", text, labels=["source", "quality"])
        for labels, spent in now.joules.items():
            joules.add_metric(list(labels), spent)
        text = "Times that an idle model's pages were given back."
        yield from (watts, joules, CounterMetricFamily("poise_idle_releases", text, now.n_releases))
