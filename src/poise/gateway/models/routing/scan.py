"""What rules find in a request: every text in it, whatever field it is in, read by a text worker.

Fields are not listed: whatever a canonical request has is looked into, so that a field that is added later is read as well."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping

import msgspec

from poise.config.hybrid import EgressSettings
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.tokens import TextJobs, text_bytes
from poise.wire import text as wire

log = logging.getLogger(__name__)

UNSCANNED = "unscanned"
"""Found in a request that could not be read: it counts as a hit."""
NUMBER_MIN = 1_000_000
"""A smaller number is nothing that a rule could find."""


async def scan(jobs: TextJobs, account: str, request: Generate, settings: EgressSettings) -> tuple[str, ...]:
    """Names of the rules that find something. Raises ApiError only where no worker is to be had: then nobody has read it."""
    if not (settings.rules or settings.words):
        return ()
    if isinstance(request.prompt, list) and any(isinstance(prompt, list) for prompt in request.prompt):
        return (UNSCANNED,)  # tokens are read by the model that they are of
    texts = list(dict.fromkeys(texts_of(request)))
    job = wire.Scan(texts, list(settings.rules), list(settings.words))
    try:
        answer = await jobs.run(job, account, sum(map(text_bytes, texts)))
    except ApiError as error:
        if error.status in (429, 503):
            raise
        log.error("a request could not be searched (%s): it counts as sensitive", error.code)
        return (UNSCANNED,)
    if isinstance(answer, wire.Scanned):
        return tuple(answer.rules)
    log.error("a request could not be searched (%s): it counts as sensitive", type(answer).__name__)
    return (UNSCANNED,)


def texts_of(request: object) -> Iterator[str]:
    """All text in it, numbers that are long enough to be something, and names of values beside these."""
    left = [request]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, int | float):
            if abs(value) >= NUMBER_MIN:
                yield str(value)
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                left.append(name if not isinstance(inner, str | int | float) else f"{name}: {inner}")
                left.append(inner)
        elif isinstance(value, list | tuple | set | frozenset):
            left.extend(value)
        elif isinstance(value, msgspec.Struct):
            left.extend(getattr(value, name) for name in value.__struct_fields__)
        elif dataclasses.is_dataclass(value):
            left.extend(getattr(value, field.name) for field in dataclasses.fields(value))
        else:
            assert value is None, f"{type(value).__name__} in a request is not looked into"
