"""Traces: spans against the library's in-memory exporter, and over HTTP against a collector that only listens."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from poise.metrics.traces import Traces, TracesUnavailable, open_traces
from tests.gateway.fakes import MODEL, FakeEngine, Submission, ask, chat_body, make_app, says

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def spans_of(script: Callable[[Submission], None], **headers: str) -> list[ReadableSpan]:
    """Of one chat request."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(FakeEngine(script))
    app.metrics.on_story = Traces(provider, MODEL).ended
    await ask(app, "POST", "/v1/chat/completions", chat_body("a secret question"), headers=headers)
    return list(exporter.get_finished_spans())


async def test_a_request_is_one_span_with_its_events() -> None:
    """GenAI attributes, events in the order of time, and no word of the conversation."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start(n_cached=2)
        submission.say("secret ")
        submission.change("swap")
        submission.change("resume")
        submission.say("answer")
        submission.finish("stop")

    (span,) = await spans_of(script)
    assert (span.name, span.kind, span.status.status_code) == (f"chat {MODEL}", SpanKind.SERVER, StatusCode.UNSET)
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == MODEL
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.usage.output_tokens"] == len("secret answer")
    assert (attributes["poise.class"], attributes["poise.tenant"]) == ("interactive", "local")
    names = [event.name for event in span.events]
    assert names == ["arrived", "queued", "started", "first_token", "swap", "resume", "finished"]
    assert dict(span.events[2].attributes or {})["poise.cached_tokens"] == 2
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.events[0].timestamp <= span.events[-1].timestamp == span.end_time
    assert "secret" not in span.to_json()


async def test_a_bad_end_is_an_error_and_the_caller_is_the_parent() -> None:
    """As the conventions want it: error.type says what, and the caller's trace goes on."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.finish("failed")

    (span,) = await spans_of(script, traceparent=CALLER)
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "failed"
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" in CALLER


async def test_a_bad_traceparent_starts_a_trace_of_its_own() -> None:
    """Whatever the caller sends."""
    (span,) = await spans_of(says("x"), traceparent="nonsense")
    assert span.parent is None


@pytest.fixture
def collector() -> Iterator[tuple[str, queue.Queue[tuple[str, bytes]]]]:
    """Its URL, and what it is sent: path and body."""
    sent: queue.Queue[tuple[str, bytes]] = queue.Queue()

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Sink) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


async def test_spans_reach_a_collector(collector: tuple[str, queue.Queue[tuple[str, bytes]]]) -> None:
    """Over OTLP/HTTP, with the service's name; closing sends what is left."""
    url, sent = collector
    traces = open_traces(url, MODEL)
    app = make_app(FakeEngine(says("x")))
    app.metrics.on_story = traces.ended
    await ask(app, "POST", "/v1/chat/completions", chat_body())
    traces.close()
    path, body = sent.get(timeout=30)
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert "poise" in [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == [f"chat {MODEL}"]


def test_without_the_libraries_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the extra's name."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracesUnavailable, match=r"install poise with the extra \[otel\]") as caught:
        open_traces("http://127.0.0.1:1", MODEL)
    assert "\n" not in str(caught.value)
