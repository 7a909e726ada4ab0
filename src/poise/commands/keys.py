"""`poise keys`: makes, lists and revokes API keys in the keys file, whether a server runs or not."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

import typer
from pydantic import TypeAdapter, ValidationError

from poise.commands.options import GROUP, JsonForTable, OneConfigFile, refused, settings_of
from poise.config import Settings
from poise.config.kinds import ClassName, DataClass, DeclaredTenantName
from poise.config.paths import keys_file
from poise.gateway.tenancy.keys import Key, KeysError, KeysFile

_DURATION = re.compile(r"(\d{1,5})([hd])")

keys = typer.Typer(help="Make, list and revoke API keys. A running server follows within a second.", **GROUP)  # type: ignore[arg-type]


@keys.command("add")
def add_key(
    tenant: Annotated[str, typer.Argument(metavar="NAME", help="The tenant; with --admin, who the operator is.")],
    comment: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[str, typer.Option(metavar="WHEN", help="30d, 12h, or a date as 2027-01-31 (UTC).")] = "",
    classes: Annotated[
        str, typer.Option(metavar="NAMES", help="interactive, background. Else whatever the tenant may use.")
    ] = "",
    data_class: Annotated[
        str, typer.Option(metavar="LABEL", help="Least label of its requests: public, internal, confidential, restricted.")
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="A key for /admin: it acts on every request, and reads no text.")
    ] = False,
    config: OneConfigFile = None,
) -> None:
    """Make a key and print it. It is shown only now."""
    names = [name.strip() for name in classes.split(",") if name.strip()]
    _checked("NAME", DeclaredTenantName, tenant)
    _checked("--classes", list[ClassName], names)
    if data_class:
        _checked("--data-class", DataClass, data_class)
    until = _moment(expires) if expires else None
    settings = settings_of(config)
    file = _file(settings)
    try:
        text, key = file.add(
            tenant, comment=comment, expires=until, classes=names, admin=admin, data_class=cast(DataClass, data_class)
        )
    except KeysError as error:
        raise refused(str(error)) from error
    typer.echo(text)
    typer.echo(f"{key.id}, for {'/admin' if admin else f'tenant {tenant}'}; it is not shown again", err=True)
    if not admin:
        is_first = all(known.admin for known in file.read()[:-1])
        typer.echo(_what_it_changes(settings, is_first=is_first), err=True)


@keys.command("list")
def list_keys(as_json: JsonForTable = False, config: OneConfigFile = None) -> None:
    """List the keys. They themselves are nowhere, only their hashes are."""
    try:
        known = _file(settings_of(config)).read()
    except KeysError as error:
        raise refused(str(error)) from error
    rows = [_row(key, datetime.now(UTC)) for key in known]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    heads = ("id", "tenant", "state", "admin", "classes", "data_class", "created", "expires", "comment")
    table = [heads, *(tuple(str(row[head] or "-") for head in heads) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `poise keys list` shows it.")], config: OneConfigFile = None
) -> None:
    """Revoke a key. Requests that it has begun go on."""
    try:
        key = _file(settings_of(config)).revoke(key_id)
    except KeysError as error:
        raise refused(str(error)) from error
    typer.echo(f"{key.id} of {key.tenant} is revoked")


def _what_it_changes(settings: Settings, *, is_first: bool) -> str:
    """Whether anybody still gets in without a key, and how to have it the other way."""
    if settings.auth.required is False:
        return (
            "callers without a key are still answered, since auth.required = false: remove that line, and every request needs "
            "a key as soon as there is one"
        )
    if is_first and not settings.auth.keys and settings.auth.required == "auto":
        return (
            "from now on every request needs a key, at a running server within a second; set auth.required = false to go on "
            "answering callers without one"
        )
    return "every request needs a key"


def _file(settings: Settings) -> KeysFile:
    return KeysFile(keys_file(settings.auth))


def _moment(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    if match := _DURATION.fullmatch(text):
        hours = int(match[1]) * (24 if match[2] == "d" else 1)
        return now + timedelta(hours=hours)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise refused(f"--expires {text}: must be as 30d, 12h or 2027-01-31") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise refused(f"--expires {text}: is over already")
    return moment


def _row(key: Key, now: datetime) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "state": key.state(now),
        "admin": "yes" if key.admin else "",
        "classes": ", ".join(key.classes),
        "data_class": key.data_class,
        "created": f"{key.created:%Y-%m-%d}",
        "expires": f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "",
        "comment": key.comment,
    }


def _checked(name: str, kind: Any, value: object) -> None:
    try:
        TypeAdapter[Any](kind).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise refused(f"{name} {value}: {detail.get('ctx', {}).get('error', detail['msg'])}") from None
