"""What the gateway counts of its clients: their connections, at which pace their streams are delivered and who is behind, what is
kept for them, and which fields they send that change nothing."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge

from poise.metrics.shapes import ClassCounter, ClassHistogram, counted, read
from poise.scheduler.request import Hold, RequestClass

GAPS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_CANCELS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class StreamMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        text = "Between two events with text of one choice in a stream."
        self.delivered = ClassHistogram(registry, "poise_delivery_gap_seconds", text, GAPS_S).observe
        text = "From taking a choice back from the engine to the engine's word that its slot and cells are free."
        self.freed: Callable[[str, float], None]
        self.freed = ClassHistogram(registry, "poise_cancel_seconds", text, _CANCELS_S).observe
        text = "Streams whose client took nothing for as long as it may."
        self._timeouts = ClassCounter(registry, "poise_reader_timeouts", text)
        self.reattached = ClassCounter(registry, "poise_reattachments", "Streams that were taken up again.").add
        text = "Times that requests were held because all their readers were behind (pause, swap), or let run again (run)."
        self.held = counted(registry, "poise_holds_total", text, class_=RequestClass, level=Hold)
        self.n_stalled = 0
        """Streams that wait for their client."""
        self.n_timed_out = 0
        """Streams that were closed because their client took nothing."""
        read(registry, "poise_readers_stalled", "Streams that wait for their client.", lambda: self.n_stalled)

    def timed_out(self, request_class: str) -> None:
        self._timeouts.add(request_class)
        self.n_timed_out += 1

    def watch_records(self, count: Callable[[], tuple[int, int]], n_bytes: Callable[[], int]) -> None:
        """Where to ask for the records that are kept: live and finished, and the memory that they take."""
        records = Gauge("poise_records", "Responses that are kept, by state.", ("state",), registry=self._registry)
        records.labels("live").set_function(lambda: count()[0])
        records.labels("finished").set_function(lambda: count()[1])
        read(self._registry, "poise_record_bytes", "Memory that the kept responses take.", n_bytes)


REASONS = (
    "address_too_many_connections", "body_timeout", "dismissed", "handshake", "headers_too_large", "linger",
    "malformed_request", "method_not_allowed", "not_taken", "http_version_not_supported", "request_timeout",
    "too_many_connections", "unsupported_transfer_encoding", "uri_too_long", "no_files",
)  # fmt: skip
"""Those that there are from the start: error codes of what was answered, and what was not."""


class ConnectionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("poise_connections", "Connections that are open, idle ones as well.", registry=registry)
        text = "Bytes of request bodies that requests in flight hold."
        self._body_bytes = Gauge("poise_request_body_bytes", text, registry=registry)
        text = (
            "Connections that the server answered by itself, or closed before it had answered: an error code, or dismissed "
            "(its place was given to another one), not_taken (its client took too little of an answer), body_timeout, "
            "linger (it did not end after its last answer), handshake (of TLS, too slow or none), no_files (there was no file "
            "for it)."
        )
        self.cut = counted(registry, "poise_connections_cut_total", text, reason=REASONS)

    def watch(self, n_open: Callable[[], int], body_bytes: Callable[[], int]) -> None:
        """Where to read the levels from, once there is a server."""
        self._open.set_function(n_open)
        self._body_bytes.set_function(body_bytes)


FIELDS = (
    # labels and hints of OpenAI's API
    "metadata", "store", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "service_tier", "parallel_tool_calls", "reasoning_effort", "reasoning", "verbosity", "modalities",
    "thinking_token_budget", "reasoning_budget_tokens", "reasoning_budget",
    "stream_options", "include_obfuscation", "annotations",
    # of other servers: where and when it is computed, and settings of what is off
    "priority", "cache_prompt", "cache_salt", "id_slot", "keep_alive", "num_ctx", "think", "enable_thinking", "include_reasoning",
    "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "xtc_threshold", "dynatemp_exponent", "early_stopping",
    "length_penalty", "guided_decoding_backend", "spaces_between_special_tokens",
    # that clients leave in messages
    "id", "timestamp", "cache_control", "model", "usage", "opts", "thinking", "provider_options",
)  # fmt: skip
"""Those that are known to have no effect; others have one label together."""
OTHER = "other"


class IgnoredFields:
    def __init__(self, registry: CollectorRegistry) -> None:
        text = (
            "Fields of requests that were taken though they have no effect, as X-Poise-Ignored names them to their callers: each "
            "once for a request, by the last part of its path. 'other': all that are not known here."
        )
        self._count = counted(registry, "poise_ignored_fields_total", text, field=(*FIELDS, OTHER))

    def add(self, paths: Iterable[str]) -> None:
        """Those of one request."""
        for path in paths:
            name = path.rpartition(".")[2]
            self._count(name if name in FIELDS else OTHER)
