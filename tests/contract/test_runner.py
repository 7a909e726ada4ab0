"""The simulated runner and the real one keep the same contract. The real one's half is slow."""

from __future__ import annotations

from tests.contract.kv_contract import KvContract
from tests.contract.runner_contract import RunnerContract


class TestRunner(RunnerContract):
    """Each test runs once for each runner; see `conftest.subject`."""


class TestKeptState(KvContract):
    """KV state that is stored, loaded, copied, cut and dropped."""
