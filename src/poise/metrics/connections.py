"""Metrics of connections: how many are open, and which ones the server itself refused or closed."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from poise.metrics.shapes import counted

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
