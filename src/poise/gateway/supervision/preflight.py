"""What must be right before anything is started, looked at in a child process.

The model's file and llama.cpp's library are read for it, and the gateway is to have nothing of either in its memory: a file that
kills its reader kills the child, and what the child says is one line for the person at the terminal. It is a fork, because the
settings are there already and nothing runs beside it yet."""

import os
from collections.abc import Callable

import msgspec

from poise.config import LoadedSettings
from poise.gateway.supervision.blame import ending


class CannotStart(Exception):
    """One line: what is wrong and what to do."""


class Checked(msgspec.Struct, frozen=True):
    """The model's file, limits above what `poise capacity` has measured, a line each, and what memory pays for, by setting."""

    path: str
    warnings: list[str] = []
    layout: dict[str, int] = {}


def check(loaded: LoadedSettings) -> Checked:
    """Whether the model can be served with these settings on this host. Raises CannotStart."""
    return in_child(lambda: _check(loaded))


def _check(loaded: LoadedSettings) -> Checked:
    from poise.llama.binding.library import EngineLibraryError
    from poise.llama.files.gguf import ModelError
    from poise.llama.fitting.capacity import problems
    from poise.llama.fitting.fit import judge

    try:
        fit = judge(loaded)
        if not fit.fits:
            raise ModelError(fit.path, fit.problem)
        found = problems(loaded, fit.path)
    except (ModelError, EngineLibraryError) as error:
        raise CannotStart(str(error)) from None
    if found and loaded.settings.server.require_measured:
        raise CannotStart("\npoise: ".join(found))
    return Checked(str(fit.path), list(found), dict(fit.layout))


def in_child(work: Callable[[], Checked]) -> Checked:
    """What `work` returns, from a fork of this process. Raises the CannotStart that it raises, or one if the child dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            data = msgspec.json.encode(_answered(work))
            while data:
                data = data[os.write(writing, data) :]
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise CannotStart(f"the model's file could not be looked at ({ending(code)}); use another file, and run `poise doctor`")
    answer = msgspec.json.decode(data, type=Checked | str)
    if isinstance(answer, str):
        raise CannotStart(answer)
    return answer


def _answered(work: Callable[[], Checked]) -> Checked | str:
    """What is written into the pipe: what `work` returns, or why the server cannot start."""
    try:
        return work()
    except CannotStart as error:
        return str(error)
