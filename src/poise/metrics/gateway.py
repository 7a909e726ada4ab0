"""What the gateway counts of its requests, as /metrics shows it.

The gateway reports what it sees of its requests here; the engine's own counters and gauges are read from its last status
message at the time of a scrape. Tenants have a registry of their own, because who is here is for operators only; how many of
them have a label is bounded, as every label is. Names are those of OpenTelemetry's GenAI conventions where there is one."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from poise.metrics.audit import AuditMetrics
from poise.metrics.clients import GAPS_S, ConnectionMetrics, IgnoredFields, StreamMetrics
from poise.metrics.early import RecoveryMetrics, TaskMetrics, TextMetrics
from poise.metrics.egress import EgressMetrics
from poise.metrics.engine import EngineCollector, EngineReading
from poise.metrics.lately import Lately
from poise.metrics.power import PowerMetrics
from poise.metrics.shapes import ClassCounter, ClassHistogram, counted, read
from poise.metrics.story import WHOLE, Outcome, RequestStory
from poise.metrics.tenants import TenantMetrics
from poise.scheduler.request import RequestClass
from poise.wire.changes import ChangeKind

NO_CLASS = "none"
"""Class label of requests that were refused before their class was known."""

_WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

TENANTS_MAX = 20


class GatewayMetrics:
    """The metrics of one gateway, in a registry of its own. Times are seconds of one monotonic clock, passed in."""

    def __init__(
        self,
        read_engine: Callable[[], EngineReading],
        recovery: RecoveryMetrics | None = None,
        tenants_max: int = TENANTS_MAX,
        tasks: TaskMetrics | None = None,
        text: TextMetrics | None = None,
    ) -> None:
        self.recovery = recovery or RecoveryMetrics()
        self.registry = registry = CollectorRegistry()
        self.tenant_registry = CollectorRegistry()
        self.on_story: Callable[[RequestStory], None] = lambda _: None
        """Is called for every request that has ended."""
        self._tenants = TenantMetrics(self.tenant_registry, tenants_max)
        self._make_times(registry)
        self._make_counts(registry)
        self.n_open = 0
        """HTTP requests being answered."""
        read(registry, "poise_open_requests", "HTTP requests being answered.", lambda: self.n_open)
        self.lately = Lately()
        self.streams = StreamMetrics(registry)
        self.ignored = IgnoredFields(registry).add
        self.audit = AuditMetrics(registry)
        self.power = PowerMetrics(registry)
        self.connections = ConnectionMetrics(registry)
        self.egress = EgressMetrics(registry, self.tenant_registry)
        registry.register(EngineCollector(read_engine))
        registry.register(self.recovery.registry)
        registry.register((tasks or TaskMetrics()).registry)
        registry.register((text or TextMetrics()).registry)

    def _make_times(self, registry: CollectorRegistry) -> None:
        times = partial(ClassHistogram, registry)
        text = "From the arrival of a request to its first token."
        self._ttft = times("gen_ai_server_time_to_first_token_seconds", text, _WAITS_S)
        text = "Mean time of an output token after the first one, of each choice that is whole."
        self._per_token = times("gen_ai_server_time_per_output_token_seconds", text, GAPS_S)
        self._gap = times("poise_inter_token_seconds", "Between two arrivals of tokens in one choice.", GAPS_S)
        text = "In the scheduler's queue, as the engine measured it."
        self._queue_wait = times("poise_queue_wait_seconds", text, _WAITS_S)
        text = "From the arrival of a request to the end of a choice, however it ended."
        self._duration = times("gen_ai_server_request_duration_seconds", text, _WAITS_S)
        text = "From the arrival of a request to the end of an answer that is whole: stop or length."
        self._complete = times("poise_complete_answer_seconds", text, _WAITS_S)

    def _make_counts(self, registry: CollectorRegistry) -> None:
        counts, by = partial(ClassCounter, registry), partial(counted, registry)
        text = "Prompt tokens of accepted requests, each prompt counted once, as in their usage."
        self.accepted = counts("poise_prompt_tokens", text).add
        text = "Prompt tokens of started choices that needed no computing."
        self._cached_tokens = counts("poise_cached_tokens", text)
        self._output_tokens = counts("poise_output_tokens", "Tokens received from the engine.")
        text = "Requests whose client left before the answer was complete."
        self.disconnected = counts("poise_client_disconnects", text).add
        text = "Conversations whose system messages take more than long_system_share of the context."
        self.long_system_prompt = counts("poise_long_system_prompts", text).add
        text = (
            "Choices that ended: stop, length, cancelled (by its client, which left or said so), reader_timeout (its client "
            "took nothing for as long as it may), expired (it waited as long as it may), engine_lost, quarantined (engines "
            "died computing it), server_stopping (it was cut when the server stopped), failed."
        )
        self._requests = by("poise_requests_total", text, class_=(), outcome=())
        text = (
            "Choices that ended and were held to a form, by its kind: schema, json_object, regex, choice, lark, gbnf, "
            "structural_tag; and by outcome."
        )
        self._structured = by("poise_structured_requests_total", text, kind=("schema", "json_object"), outcome=WHOLE)
        text = (
            "Generation requests answered with an error before anything was computed, by error code. "
            "Class 'none': refused before the class was known."
        )
        self._rejected = by("poise_rejected_total", text, class_=(), reason=())
        text = "Calls of functions in answers: whole, or cut short with the end of their answer."
        self._calls = by("poise_tool_calls_total", text, outcome=("whole", "cut"))
        text = (
            "What happened to running choices, as their streams are told: pause, stall (its client is behind), swap, drop, "
            "resume, downgrade; lost and recover when the engine died under them and another one took them up."
        )
        self.changed = by("poise_changes_total", text, class_=RequestClass, change=ChangeKind)

    def exposition(self, *, tenants_shown: bool) -> bytes:
        """The Prometheus text format. `tenants_shown`: with the metrics by tenant."""
        return generate_latest(self.registry) + (generate_latest(self.tenant_registry) if tenants_shown else b"")

    def started(self, request_class: str, wait_s: float, n_cached: int) -> None:
        self._queue_wait.observe(request_class, wait_s)
        self._cached_tokens.add(request_class, n_cached)

    def first_tokens(self, request_class: str, n_tokens: int, ttft_s: float, now_s: float) -> None:
        self._ttft.observe(request_class, ttft_s)
        self._output_tokens.add(request_class, n_tokens)
        self.lately.first_token(request_class, ttft_s, now_s)

    def more_tokens(self, request_class: str, n_tokens: int, gap_s: float) -> None:
        self._gap.observe(request_class, gap_s)
        self.lately.next_token(request_class, gap_s)
        self._output_tokens.add(request_class, n_tokens)

    def ended(self, story: RequestStory) -> None:
        """A request has ended, and this is what happened to it."""
        for choice in story.choices:
            self._requests(story.request_class, choice.outcome)
            if form := story.form:
                self._structured(form, choice.outcome)
            self.lately.ended(story.request_class, choice.outcome)
            for n in range(choice.n_calls):
                is_cut = n == choice.n_calls - 1 and choice.outcome != Outcome.STOP
                self._calls("cut" if is_cut else "whole")
            self._duration.observe(story.request_class, choice.ended_s - story.arrived_s)
            if choice.is_complete:
                self._complete.observe(story.request_class, choice.ended_s - story.arrived_s)
                if choice.per_token_s is not None:
                    self._per_token.observe(story.request_class, choice.per_token_s)
        self._tenants.ended(story)
        self.on_story(story)

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Name a tenant no longer: what was counted under its name goes to the others', because sums must not go back."""
        return {"counted_choices": self._tenants.forget(tenant)}

    def rejected(self, request_class: str | None, reason: str, tenant: str | None = None) -> None:
        """`tenant`: None where the caller was refused before it was known."""
        self._rejected(request_class or NO_CLASS, reason)
        self.lately.refused(request_class, reason)
        if tenant is not None:
            self._tenants.rejected(tenant, reason)
