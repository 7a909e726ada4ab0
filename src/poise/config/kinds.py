"""The types that settings are made of: names, addresses, keys and choices, each with what it may be in words."""

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

KEY_CHARS_MIN = 12
"""Of keys that people choose. Those of `poise keys` have 46."""
NAME = re.compile(r"[a-z0-9_-]{1,64}")


def _text(rule: str | Callable[[str], object], problem: str) -> AfterValidator:
    """What a text must be, as a pattern or a function: where that does not hold, `problem` is the end of the message."""
    holds = re.compile(rule).fullmatch if isinstance(rule, str) else rule

    def check(text: str) -> str:
        if not holds(text):
            raise ValueError(problem)
        return text

    return AfterValidator(check)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine by definition."""
    address = address_of(host)
    return host.lower().rstrip(".") == "localhost" or (address is not None and address.is_loopback)


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """In its usual form: an IPv4 address that came in on an IPv6 socket is an IPv4 address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_origin(origin: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and bool(parts.netloc) and origin == f"{parts.scheme}://{parts.netloc}"


def _is_key(key: str) -> bool:
    # A key travels in an HTTP header, where anything else would be cut or altered on the way. A short one can be guessed.
    return len(key) >= KEY_CHARS_MIN and all("!" <= character <= "~" for character in key)


def _auto_or(least: int, most: int) -> PlainValidator:
    """A whole number, or "auto". Not a union to validate: its errors would name its members, not the setting."""

    def check(value: object) -> object:
        if value == "auto" or (type(value) is int and least <= value <= most):
            return value
        raise ValueError(f'must be "auto" or a whole number between {least} and {most}')

    return PlainValidator(check)


_NAME = 'name must be 1 to 64 of a-z, 0-9, "_" and "-"'
_NO_DECLARED = f'a tenant {_NAME}, not "local" and not begin with "key-"'
_NO_BACKEND = f'a backend {_NAME}, not "local" or "auto"'
_NO_URL = 'must be a URL that begins with "http://" or "https://", or empty'
_NO_ALIAS = "an alias must be 1 to 256 printable characters, without blanks at its ends"
_NO_HOST = "must be names or addresses, without scheme, port and path"
_NO_PATH = "must be a path as in /poise, without a slash at its end, or empty"
_NO_ORIGIN = "must be origins, each as in https://chat.example: scheme, host and perhaps a port"
_NO_RULE = 'must be among "card", "iban", "key", "email", "phone" and "private_host"'
_NO_MONEY = 'must be an amount as in "2.50", with at most 3 decimals, in quotes'
_NO_SERVER = "must be a URL as in https://api.example.com/v1, without user, query and fragment"
_NO_KEY = f"must be printable ASCII without spaces, at least {KEY_CHARS_MIN} characters"

TenantName = Annotated[str, _text(NAME.pattern, f"a tenant {_NAME}")]
BackendName = Annotated[str, _text(rf"(?!(?:local|auto)\Z){NAME.pattern}", _NO_BACKEND)]
# "local" and "key-..." are the tenants of callers without a declared key; a declared one must never be taken for them.
DeclaredTenantName = Annotated[str, _text(rf"(?!key-|local\Z){NAME.pattern}", _NO_DECLARED)]
AliasName = Annotated[str, _text(lambda name: 0 < len(name) <= 256 and name.isprintable() and name == name.strip(), _NO_ALIAS)]
TemplateName = Annotated[str, _text(NAME.pattern, f"a template {_NAME}")]
OptionalUrl = Annotated[str, _text(r"(https?://[^\s/]+(/\S*)?)?", _NO_URL)]
NonBlankText = Annotated[str, _text(str.strip, "must not be empty")]
HostName = Annotated[str, _text(r"[^\s/]+", _NO_HOST)]
NetworkName = Annotated[str, _text(_is_network, "must be IP addresses or networks, as in 10.0.0.2 or 10.0.0.0/8")]
RootPath = Annotated[str, _text(r"(?a)(/[\w.~-]+)*", _NO_PATH)]
WebOrigin = Annotated[str, _text(_is_origin, _NO_ORIGIN)]
ClassName = Annotated[str, _text("interactive|background", 'must be among "interactive" and "background"')]
ApiKey = Annotated[str, _text(_is_key, _NO_KEY)]
OptionalApiKey = Annotated[str, _text(lambda key: not key or _is_key(key), _NO_KEY)]
Hours = Annotated[str, _text(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", "must be spans as in 22:00-06:30")]
Slots = Annotated[int | Literal["auto"], Field(ge=1, le=256), _auto_or(1, 256)]
StoreMb = Annotated[int | Literal["auto"], Field(ge=0, le=1 << 20), _auto_or(0, 1 << 20)]
Toggle = Literal["auto", "on", "off"]
KvType = Literal["f16", "q8_0", "q4_0"]
Profile = Literal["workstation", "team", "edge", "hybrid"]
DataClass = Literal["public", "internal", "confidential", "restricted"]
"""Labels of requests, from what anybody may see to what goes nowhere."""
RuleName = Annotated[str, _text("card|iban|key|email|phone|private_host", _NO_RULE)]
Money = Annotated[str, _text(r"(\d{1,9}(\.\d{1,3})?)?", _NO_MONEY)]
ServerUrl = Annotated[str, _text(r"https?://[^\s/@?#]+(/[^\s?#]*)?", _NO_SERVER)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
