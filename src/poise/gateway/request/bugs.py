"""An error that nobody foresaw, in the log: what it was and where, without its own words.

The message of an exception may quote what was being worked on, as in "invalid literal for int(): 'a prompt'". The log must never
hold text of requests, so messages are left out; a traceback's lines are source code and hold none."""

import logging
import traceback

from poise.gateway.request.refusals import new_error_id


def log_bug(log: logging.Logger, request_id: str, error: BaseException, where: str = "") -> str:
    """Log the error; returns the id by which it is found in the log."""
    error_id = new_error_id()
    log.error("[%s] internal error %s%s: %s", request_id, error_id, where, "\n".join(described(error)))
    return error_id


def described(error: BaseException) -> list[str]:
    """The kinds of the errors and where they were raised, the cause last; no messages."""
    lines = [type(error).__name__ + " (its message is left out: it could quote a request)"]
    lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [*lines, "caused by", *described(cause)] if cause is not None else lines
