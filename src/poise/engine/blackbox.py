"""The engine's black box: a little shared memory that says what it was doing, and outlives it."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

SIZE = 8192
_HEAD = struct.Struct("<qqqqq")
PHASES = ("resting", "planning", "computing")


@dataclass(frozen=True, slots=True)
class BoxReading:
    phase: str
    step: int
    at_ns: int
    drained_ns: int
    request_ids: tuple[int, ...]


class BlackBox:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, SIZE)

    @classmethod
    def create(cls) -> BlackBox:
        fd = os.memfd_create("poise-black-box")
        os.ftruncate(fd, SIZE)
        return cls(fd)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def read(self) -> BoxReading:
        phase, step, at_ns, drained_ns, n = _HEAD.unpack_from(self._map)
        ids = struct.unpack_from(f"<{n}q", self._map, _HEAD.size)
        return BoxReading(PHASES[phase], step, at_ns, drained_ns, ids)
