"""What is counted of the gateway's long-lived tasks, in a registry of its own: they run before there is an application."""

from prometheus_client import CollectorRegistry, Counter


class TaskMetrics:
    """Of one gateway. Names of tasks are the program's own, so the label is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        text = "Exceptions in the gateway's long-lived tasks; each task goes on after a while."
        self._failures = Counter("poise_task_failures_total", text, ("task",), registry=self.registry)

    def known(self, task: str) -> None:
        """Its series exists from the start."""
        self._failures.labels(task)

    def failed(self, task: str) -> None:
        """May be called from any thread."""
        self._failures.labels(task).inc()
