"""Bodies that are no requests: what a server must refuse, whatever it serves, and survive."""

from __future__ import annotations

MALFORMED = (
    b"",
    b"{",
    b"[1, 2, 3]",
    b"\xff\xfe\x00",
    b'"text"',
    b'{"model": "default"}',
    b'{"model": "default", "messages": "Hello!"}',
    b'{"model": "default", "messages": [{"role": "user", "content": 5}]}',
    b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
    b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "stream": 17}',
    b"[" * 20_000,
)


def malformed_body(seed: int) -> bytes:
    """One of them, the same for the same seed."""
    return MALFORMED[seed % len(MALFORMED)]
