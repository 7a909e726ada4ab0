"""Tools: the functions that a model may ask its caller to call, and what the caller lets it do with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function. `parameters`: the JSON Schema of its arguments, which are an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    """A call of it follows the schema, also one that the model makes of its own accord."""
    param: str = ""
    """The field that it came in, for errors to name."""

    def as_shown(self) -> dict[str, Any]:
        """As chat templates know it: in OpenAI's shape, without what is no business of the model's."""
        described = {"description": self.description} if self.description else {}
        parameters = NO_PARAMETERS if self.parameters is None else self.parameters
        return {"type": "function", "function": {"name": self.name, **described, "parameters": parameters}}


class ToolMode(StrEnum):
    """What an answer may be."""

    NONE = "none"
    """Text. The model is not told of the tools."""
    AUTO = "auto"
    """Text, or calls, or text and then calls."""
    REQUIRED = "required"
    """Calls, at least one."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and what may be done with them."""

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = ToolMode.AUTO
    allowed: tuple[str, ...] = ()
    """Names of the only ones that may be called; the model is told of all. Empty: any."""
    parallel: bool = True
    """An answer may have several calls."""

    def __bool__(self) -> bool:
        return bool(self.offered)

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Those that the model is told of."""
        return () if self.mode is ToolMode.NONE else self.tools

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that it may call."""
        return tuple(tool for tool in self.offered if not self.allowed or tool.name in self.allowed)


NO_TOOLS = ToolUse()
