"""Fields of a request that were taken though they have no effect: counted within bounds, and named to the caller.

Clients send many fields that change no answer: labels, hints for caches, marks of their own in messages. A server that refuses
them is of no use to these clients; one that says nothing leaves the others in the dark. So they are taken, and named."""

import re

from poise.gateway.request.refusals import ApiError

NAMES_MAX, TAKEN_MAX = 256, 32_768
"""Different names, and fields in all, of one request: each one is looked at while every stream waits."""
_CHARS_MAX = 100
_INDEX = re.compile(r"\[[0-9]+\]")


class Ignored:
    """The fields of one request that have no effect. `strict`: there are to be none but those that ask for nothing."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self._names: dict[str, None] = {}
        self._n_taken = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Paths, each once: those of all entries of a list are one, as in `messages[].id`."""
        return tuple(self._names)

    def take(self, param: str) -> None:
        """A field was found. Raises ApiError when there are too many."""
        if self.strict:
            return
        self._names[_INDEX.sub("[]", param[:_CHARS_MAX])] = None
        self._n_taken += 1
        if len(self._names) > NAMES_MAX or self._n_taken > TAKEN_MAX:
            message = (
                f"The request has more fields without effect than are taken ({NAMES_MAX} names, {TAKEN_MAX} fields in all). "
                "Send only what /openapi.json lists."
            )
            raise ApiError(400, "too_many_unknown", message)


STRICT = Ignored(strict=True)
