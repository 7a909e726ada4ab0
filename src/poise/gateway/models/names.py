"""Which model a request means by a name: a model's own name first, then exact aliases, then patterns in the order written.

An answer names the model that made it, whatever the request called it: as OpenAI resolves its own aliases, and because an
alias, a pattern or any name at all may stand for something that its user did not expect."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from poise.gateway.models.backend import Backend
from poise.gateway.request.refusals import model_not_found

DEFAULT = "default"
"""Name that stands for the first model, whatever it is called."""


class UnknownTarget(Exception):
    """An alias leads to no model."""


class ModelNames:
    """The models of this server by all names that requests may have."""

    def __init__(
        self,
        models: Mapping[str, Backend],
        aliases: Mapping[str, str],
        *,
        any_name: bool = False,
        patterns: Mapping[str, Backend] | None = None,
    ) -> None:
        """`models`: by their own names, the first one answers where no name is given. Raises UnknownTarget.

        `patterns` lead from names of models elsewhere to who has them. `aliases` lead from a name, or a pattern with `*`, `?`
        or `[...]`, to a model's name or DEFAULT. With `any_name` the first model answers to every other name as well."""
        first = next(iter(models.values()))
        self._models = dict(models)
        own = {DEFAULT: first, **models}
        self._patterns = list((patterns or {}).items())
        self.aliases: dict[str, Backend] = {}
        """The exact ones, in the order written."""
        for alias, target in aliases.items():
            if (backend := own.get(target)) is None:
                names = ", ".join(f'"{name}"' for name in own)
                raise UnknownTarget(f'aliases."{alias}" = "{target}": there is no such model; there are {names}')
            if any(mark in alias for mark in "*?["):
                self._patterns.append((alias, backend))
            elif alias not in models:
                self.aliases[alias] = backend
        self._known = {DEFAULT: first, **self.aliases, **models}
        if any_name:
            self._patterns.append(("*", first))

    @property
    def models(self) -> list[Backend]:
        """Each once."""
        return list(dict.fromkeys(self._models.values()))

    @property
    def exact(self) -> list[str] | None:
        """All names that there are; None where patterns let in others."""
        return None if self._patterns else list(self._known)

    def find(self, name: str) -> Backend:
        """Who answers to a name; empty: none was given. Raises ApiError."""
        backend = self._known.get(name or DEFAULT)
        if backend is None:
            backend = next((backend for pattern, backend in self._patterns if fnmatchcase(name, pattern)), None)
        if backend is None:
            raise model_not_found(name, [*self._known, *(pattern for pattern, _ in self._patterns)])
        return backend
