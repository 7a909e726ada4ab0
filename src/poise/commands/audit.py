"""`poise audit`: checks and reads the audit log of this host."""

from pathlib import Path
from typing import Annotated

import typer

from poise.audit.chain import audit_key
from poise.audit.verify import last_entries
from poise.audit.verify import verify as verify_log
from poise.commands.options import GROUP, OneConfigFile, refused, settings_of
from poise.config.paths import audit_dir, keys_file
from poise.gateway.tenancy.keys import KeysError, KeysFile

BROKEN = 1
Folder = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else the one of the configuration.")]
audit = typer.Typer(help="Check and read the audit log.", **GROUP)  # type: ignore[arg-type]


@audit.command("verify")
def verify_audit(path: Folder = None, config: OneConfigFile = None) -> None:
    """Check that no line was edited, dropped, put in, moved or cut off. The status is 1 if one was."""
    settings = settings_of(config)
    try:
        key = audit_key(KeysFile(keys_file(settings.auth)).read_pepper())
        report = verify_log(path or audit_dir(settings.audit), key)
    except (KeysError, OSError) as error:
        raise refused(str(error)) from error
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
    path: Folder = None,
    config: OneConfigFile = None,
) -> None:
    """Print the last entries, one JSON object a line, as they are."""
    try:
        lines = last_entries(path or audit_dir(settings_of(config).audit), n)
    except OSError as error:
        raise refused(str(error)) from error
    for line in lines:
        typer.echo(line)
