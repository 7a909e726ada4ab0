"""The types that settings are made of: names, addresses, keys and choices, each with what it may be in words."""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

KEY_CHARS_MIN = 12
"""Of keys that people choose. Those of `poise keys` have 46."""
NAME = re.compile(r"[a-z0-9_-]{1,64}")


def _name(what: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f'a {what} name must be 1 to 64 of a-z, 0-9, "_" and "-"')
    return name


def _declared_tenant(name: str) -> str:
    # "local" and "key-..." are the tenants of callers without a declared key; a declared one must never be taken for them.
    if not NAME.fullmatch(name) or name.startswith("key-") or name == "local":
        raise ValueError(
            'a tenant name must be 1 to 64 of a-z, 0-9, "_" and "-", not "local" and not begin with "key-"'
        )
    return name


def _api_key(key: str) -> str:
    # A key travels in an HTTP header, where anything else would be cut or altered on the way. A short one can be guessed.
    if len(key) < KEY_CHARS_MIN or not all("!" <= character <= "~" for character in key):
        raise ValueError(f"must be printable ASCII without spaces, at least {KEY_CHARS_MIN} characters")
    return key


def _optional_url(url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise ValueError('must be a URL that begins with "http://" or "https://", or empty')
    return url


def _host(name: str) -> str:
    if not name or "/" in name or any(character.isspace() for character in name):
        raise ValueError("must be names or addresses, without scheme, port and path")
    return name


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be IP addresses or networks, as in 10.0.0.2 or 10.0.0.0/8") from None
    return text


def _origin(origin: str) -> str:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
        raise ValueError("must be origins, each as in https://chat.example: scheme, host and perhaps a port")
    return origin


def _root_path(path: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)*", path, re.ASCII):
        raise ValueError("must be a path as in /poise, without a slash at its end, or empty")
    return path


def _class_name(name: str) -> str:
    if name not in ("interactive", "background"):
        raise ValueError('must be among "interactive" and "background"')
    return name


def _alias(name: str) -> str:
    if not name or not name.isprintable() or name != name.strip() or len(name) > 256:
        raise ValueError("an alias must be 1 to 256 printable characters, without blanks at its ends")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


DeclaredTenantName = Annotated[str, AfterValidator(_declared_tenant)]
TenantName = Annotated[str, AfterValidator(partial(_name, "tenant"))]
AliasName = Annotated[str, AfterValidator(_alias)]
TemplateName = Annotated[str, AfterValidator(partial(_name, "template"))]
OptionalUrl = Annotated[str, AfterValidator(_optional_url)]
NonBlankText = Annotated[str, AfterValidator(_not_blank)]
HostName = Annotated[str, AfterValidator(_host)]
NetworkName = Annotated[str, AfterValidator(_network)]
RootPath = Annotated[str, AfterValidator(_root_path)]
WebOrigin = Annotated[str, AfterValidator(_origin)]
ClassName = Annotated[str, AfterValidator(_class_name)]
ApiKey = Annotated[str, AfterValidator(_api_key)]
OptionalApiKey = Annotated[str, AfterValidator(lambda key: _api_key(key) if key else key)]
Toggle = Literal["auto", "on", "off"]
KvType = Literal["f16", "q8_0", "q4_0"]
Profile = Literal["workstation", "team", "edge"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
