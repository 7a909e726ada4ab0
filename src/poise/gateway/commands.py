"""`poise keys` and `poise audit`: what an operator does with the files of a server, whether it runs or not."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from poise.audit.chain import audit_key
from poise.audit.verify import last_entries
from poise.audit.verify import verify as verify_log
from poise.config import ConfigError, Settings, load
from poise.config.kinds import ClassName, DeclaredTenantName
from poise.config.paths import audit_dir, keys_file
from poise.gateway.keys import Key, KeysError, KeysFile

USAGE_ERROR = 2
BROKEN = 1
_DURATION = re.compile(r"(\d{1,5})([hd])")
_OPTIONS = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
}

keys = typer.Typer(help="Make, list and revoke API keys. A running server follows within a second.", **_OPTIONS)  # type: ignore[arg-type]
audit = typer.Typer(help="Check and read the audit log.", **_OPTIONS)  # type: ignore[arg-type]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file. Else ./poise.toml, else the one of your user directory."),
]


@keys.command("add")
def add_key(
    tenant: Annotated[str, typer.Argument(metavar="NAME", help="The tenant; with --admin, who the operator is.")],
    comment: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[str, typer.Option(metavar="WHEN", help="30d, 12h, or a date as 2027-01-31 (UTC).")] = "",
    classes: Annotated[
        str, typer.Option(metavar="NAMES", help="interactive, background. Else whatever the tenant may use.")
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="A key for /admin: it acts on every request, and reads no text.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Make a key and print it. It is shown only now."""
    names = [name.strip() for name in classes.split(",") if name.strip()]
    _checked("NAME", DeclaredTenantName, tenant)
    _checked("--classes", list[ClassName], names)
    until = _moment(expires) if expires else None
    settings = _settings(config)
    file = _file(settings)
    try:
        text, key = file.add(tenant, comment=comment, expires=until, classes=names, admin=admin)
    except KeysError as error:
        raise _refusal(str(error)) from error
    typer.echo(text)
    typer.echo(f"{key.id}, for {'/admin' if admin else f'tenant {tenant}'}; it is not shown again", err=True)
    if not admin:
        typer.echo(
            _what_it_changes(settings, is_first=not any(not known.admin for known in file.read()[:-1])), err=True
        )


@keys.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False, config: ConfigFile = None
) -> None:
    """List the keys. They themselves are nowhere, only their hashes are."""
    try:
        known = _file(_settings(config)).read()
    except KeysError as error:
        raise _refusal(str(error)) from error
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in known]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    heads = ("id", "tenant", "state", "admin", "classes", "created", "expires", "comment")
    table = [heads, *(tuple(str(row[head] or "-") for head in heads) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `poise keys list` shows it.")],
    config: ConfigFile = None,
) -> None:
    """Revoke a key. Requests that it has begun go on."""
    try:
        key = _file(_settings(config)).revoke(key_id)
    except KeysError as error:
        raise _refusal(str(error)) from error
    typer.echo(f"{key.id} of {key.tenant} is revoked")


@audit.command("verify")
def verify_audit(
    path: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else the one of the configuration.")] = None,
    config: ConfigFile = None,
) -> None:
    """Check that no line was edited, dropped, put in, moved or cut off. The status is 1 if one was."""
    settings = _settings(config)
    try:
        key = audit_key(_file(settings).read_pepper())
        report = verify_log(path or audit_dir(settings.audit), key)
    except (KeysError, OSError) as error:
        raise _refusal(str(error)) from error
    if report.problem:
        typer.echo(f"the audit log does not hold: {report.problem}", err=True)
        raise typer.Exit(BROKEN)
    typer.echo(
        f"the audit log holds: entries {report.first_seq} to {report.last_seq} in {report.n_files} files; "
        f"{report.n_contents} with content, {report.n_erased} whose content was erased"
    )


@audit.command("tail")
def tail_audit(
    n: Annotated[int, typer.Option("-n", min=1, max=100_000, help="How many.")] = 20,
    path: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else the one of the configuration.")] = None,
    config: ConfigFile = None,
) -> None:
    """Print the last entries, one JSON object a line, as they are."""
    try:
        lines = last_entries(path or audit_dir(_settings(config).audit), n)
    except OSError as error:
        raise _refusal(str(error)) from error
    for line in lines:
        typer.echo(line)


def _settings(config: Path | None) -> Settings:
    try:
        return load(config, os.environ, {}).settings
    except ConfigError as error:
        raise _refusal(*error.problems) from error


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
        raise _refusal(f"--expires {text}: must be as 30d, 12h or 2027-01-31") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise _refusal(f"--expires {text}: is over already")
    return moment


def _row(key: Key, now: datetime) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "state": key.state(now),
        "admin": "yes" if key.admin else "",
        "classes": ", ".join(key.classes),
        "created": f"{key.created:%Y-%m-%d}",
        "expires": f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "",
        "comment": key.comment,
    }


def _checked(name: str, kind: Any, value: object) -> None:
    try:
        TypeAdapter[Any](kind).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise _refusal(f"{name} {value}: {detail.get('ctx', {}).get('error', detail['msg'])}") from None


def _refusal(*problems: str) -> typer.Exit:
    for problem in problems:
        typer.echo(f"poise: {problem}", err=True)
    return typer.Exit(USAGE_ERROR)
