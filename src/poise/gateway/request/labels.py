"""How far the text of a request may go, as a label. Labels only rise: whoever has something to say can raise it, nobody
lowers it."""

from enum import IntEnum


class Label(IntEnum):
    """The names are those of settings and headers, in lower case."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3

    @property
    def shown(self) -> str:
        return self.name.lower()


def label_of(name: str) -> Label:
    """By a name of settings and headers. Raises KeyError."""
    return Label[name.upper()]
