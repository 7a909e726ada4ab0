"""Which models there are by which names: this host's, those of other servers, and the one that may be answered by either."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from poise.config import Settings
from poise.gateway.models.backend import Backend
from poise.gateway.models.egress.door import Egress, Recorder
from poise.gateway.models.local.model import LocalModel
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.remote.model import RemoteModel
from poise.gateway.models.routed import RoutedModel, Routing
from poise.gateway.models.routing.labelling import Labelling
from poise.gateway.models.routing.policy import AUTO
from poise.gateway.tenancy.erasure import Eraser
from poise.gateway.text.tokens import TextJobs
from poise.metrics.gateway import GatewayMetrics


@dataclass(frozen=True, slots=True)
class Models:
    """`backends` by their own names: the first one answers where no name is given. `patterns` lead to models of other servers."""

    backends: Mapping[str, Backend]
    patterns: Mapping[str, Backend] = field(default_factory=dict)
    routing: Routing | None = None
    """Where there are other servers."""
    erasers: Sequence[Eraser] = ()
    """Who of them holds something of a tenant."""


def assemble(
    settings: Settings,
    name: str,
    local: LocalModel | None,
    recorder: Recorder,
    ledger: Ledger | None,
    jobs: TextJobs,
    metrics: GatewayMetrics,
    environ: Mapping[str, str] = os.environ,
) -> Models:
    """`name`: of the model of this host. Raises EgressError where a server's key or certificates cannot be read."""
    own: dict[str, Backend] = {} if local is None else {name: local}
    erasers: list[Eraser] = [] if local is None else [local.grammars]
    if not settings.backends:
        return Models(own, erasers=erasers)
    ledger = ledger or Ledger(settings, None)
    metrics.egress.watch_budgets(ledger.budgets_left)
    egress = Egress(settings, recorder, metrics.egress, environ=environ)
    remotes = {backend: RemoteModel(backend, settings, egress, ledger, metrics) for backend in settings.backends}
    labelling = Labelling(settings, jobs)
    routing = Routing(settings, local, remotes, labelling, egress, metrics)
    asked = {backend: RoutedModel(backend, routing, backend) for backend in remotes}
    every, patterns = {AUTO: RoutedModel(AUTO, routing), **own, **asked}, {f"{b}/*": model for b, model in asked.items()}
    return Models(every, patterns, routing, [*erasers, labelling, ledger])
