"""OpenTelemetry traces: one span for each API request, exported over OTLP/HTTP. Off unless `telemetry.otlp_endpoint` is set.

A span is made from the request's story when it has ended, so that while it runs nothing is spent on it, and exported by a
thread of the library's own. Attributes follow the GenAI conventions. No prompt and no answer is in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from poise import __version__
from poise.metrics.story import BAD, Happened, RequestStory

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 5.0


class TracesUnavailable(Exception):
    """The libraries are not installed. The message is one line and says what to do."""


class Traces:
    """Makes spans of stories."""

    def __init__(self, provider: TracerProvider, model_name: str) -> None:
        # The libraries are an extra: who makes a provider has them.
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("poise", __version__)
        self._model_name = model_name
        self._kind = SpanKind.SERVER
        self._error = Status(StatusCode.ERROR)
        self._caller = TraceContextTextMapPropagator()

    def ended(self, story: RequestStory) -> None:
        """A request has ended."""
        offset_ns = time.time_ns() - time.perf_counter_ns()
        parent = self._caller.extract({"traceparent": story.traceparent}) if story.traceparent else None
        span = self._tracer.start_span(
            f"{story.operation} {self._model_name}",
            context=parent,
            kind=self._kind,
            attributes=self._attributes(story),
            start_time=_epoch_ns(story.arrived_s, offset_ns),
        )
        for happened in story.timeline:
            span.add_event(happened.what, _attributes(happened), timestamp=_epoch_ns(happened.at_s, offset_ns))
        if bad := [choice.outcome for choice in story.choices if choice.outcome in BAD]:
            span.set_attribute("error.type", bad[0])
            span.set_status(self._error)
        span.end(_epoch_ns(max(choice.ended_s for choice in story.choices), offset_ns))

    def close(self) -> None:
        """Export what is left, for as long as an export may take."""
        self._provider.shutdown()

    def _attributes(self, story: RequestStory) -> dict[str, Any]:
        choices = story.choices
        return {
            "gen_ai.operation.name": story.operation,
            "gen_ai.provider.name": "poise",
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.id": story.response_id,
            "gen_ai.request.choice.count": len(choices),
            "gen_ai.response.finish_reasons": [choice.outcome for choice in choices],
            "gen_ai.usage.input_tokens": story.n_prompt,
            "gen_ai.usage.output_tokens": sum(choice.n_output for choice in choices),
            "gen_ai.usage.cache_read.input_tokens": sum(choice.n_cached for choice in choices),
            "poise.class": story.request_class,
            "poise.tenant": story.tenant,
            "poise.request_id": story.request_id,
        }


def open_traces(endpoint: str, model_name: str) -> Traces:
    """Traces that go to an OTLP/HTTP collector. Raises TracesUnavailable."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesUnavailable(
            "telemetry.otlp_endpoint is set, but the OpenTelemetry libraries are not installed; "
            f"install poise with the extra [otel], or leave the endpoint empty ({error.name} is missing)"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": "poise", "service.version": __version__}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return Traces(provider, model_name)


def _attributes(happened: Happened) -> dict[str, Any]:
    """What the timeline says, which are numbers, states and reasons."""
    choice = {} if happened.choice is None else {"poise.choice": happened.choice}
    return choice | {f"poise.{name}": value for name, value in happened.detail.items() if value is not None}


def _epoch_ns(at_s: float, offset_ns: int) -> int:
    return int(at_s * 1e9) + offset_ns
