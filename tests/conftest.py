"""Settings of all tests: a host may be as slow as it likes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("poise", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("poise")
