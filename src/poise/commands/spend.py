"""`poise spend`: what other servers have cost, and what is left of budgets, from the ledger of this host."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from poise.commands.options import JsonForTable, OneConfigFile, refused, settings_of
from poise.config import Settings
from poise.config.hybrid import amount_of, nano_of
from poise.config.paths import ledger_file
from poise.gateway.models.money.books import ERASED, LedgerError, Line, Reserved, Spent, read
from poise.gateway.models.money.windows import PERIODS, start_of

By = Annotated[str, typer.Option("--by", metavar="WHAT", help="tenant, backend or day: what a line is for.")]
Since = Annotated[str, typer.Option("--since", metavar="DATE", help="First day, as in 2026-11-01 (UTC). Else of this month.")]
KEYS: Mapping[str, Callable[[Line], str]] = {
    "tenant": lambda line: line.tenant,
    "backend": lambda line: line.backend,
    "day": lambda line: _day(line.start),
}
HEADS = ("requests", "prompt", "cached", "output", "cost", "unknown")
NOTE = "unknown: a part of the cost, reserved for requests of which the other server did not tell what they took."


def spend(by: By = "tenant", since: Since = "", as_json: JsonForTable = False, config: OneConfigFile = None) -> None:
    """Show what other servers have cost: tokens, money, what is reserved, and what is left of budgets.

    It reads the ledger of this host, whether a server runs or not. Amounts are in the currency of your prices.

    \b
    Examples:
      poise spend                            this month, by tenant
      poise spend --by day --since 2026-11-01
      poise spend --by backend --json        for programs, in billionths"""
    if by not in KEYS:
        raise refused(f"--by {by}: must be tenant, backend or day")
    now = int(datetime.now(UTC).timestamp())
    first = _first(since) if since else start_of("month", now)
    settings = settings_of(config)
    path = ledger_file(settings.egress)
    try:
        lines, reserved = read(path) if path.exists() else ([], [])
    except LedgerError as error:
        raise refused(str(error)) from error
    totals = dict(_totals(lines, by, first))
    budgets = list(_budgets(settings, lines, reserved, now))
    if as_json:
        held = [entry._asdict() for entry in reserved]
        spent = [{by: name} | total._asdict() for name, total in totals.items()]
        typer.echo(json.dumps({"since": _day(first), "spent": spent, "reserved": held, "budgets": budgets}, indent=2))
        return
    if not lines and not reserved:
        typer.echo(f"nothing was sent to other servers: {path} {'is empty' if path.exists() else 'does not exist'}")
        return
    sums = sum_of(totals.values())
    _print([(f"by {by}", *HEADS), *(_row(name, total) for name, total in totals.items()), _row("all", sums)])
    typer.echo(f"\nsince {_day(first)} (UTC); reserved for requests under way: {amount_of(sum(one.nano for one in reserved))}")
    if sums.unknown:
        typer.echo(NOTE)
    if budgets:
        typer.echo()
        heads = ("scope", "name", "period", "limit", "spent", "reserved", "left")
        shown = [(b["scope"], b["name"], b["period"], *(amount_of(b[f"{head}_nano"]) for head in heads[3:])) for b in budgets]
        _print([("budget of", *heads[1:]), *shown])


def sum_of(totals: Iterable[Spent]) -> Spent:
    result = Spent()
    for total in totals:
        result = result.plus(total)
    return result


def _totals(lines: Iterable[Line], by: str, first: int) -> Iterator[tuple[str, Spent]]:
    days: dict[str, list[Spent]] = {}
    for line in lines:
        if line.period == "day" and line.start >= first:
            days.setdefault(KEYS[by](line), []).append(line.spent)
    for name in sorted(days):
        yield name, sum_of(days[name])


def _budgets(settings: Settings, lines: list[Line], reserved: list[Reserved], now: int) -> Iterator[Mapping[str, Any]]:
    """Of everybody who has one in the settings, or has spent something this month."""
    month = start_of("month", now)
    spenders = {line.tenant for line in lines if (line.period, line.start) == ("month", month) and line.tenant[:1] != ERASED}
    owners = [("tenant", name, settings.tenant(name)) for name in sorted(spenders | set(settings.tenants))]
    for scope, name, section in [*owners, *(("backend", name, backend) for name, backend in settings.backends.items())]:
        for period in PERIODS:
            if not (amount := getattr(section, f"budget_{period}")):
                continue
            start, limit = start_of(period, now), nano_of(amount)
            spent = sum(
                line.spent.nano for line in lines if (line.period, line.start, getattr(line, scope)) == (period, start, name)
            )
            held = sum(r.nano for r in reserved if start_of(period, r.at) == start and getattr(r, scope) == name)
            told = {"scope": scope, "name": name, "period": period, "limit_nano": limit, "spent_nano": spent}
            yield told | {"reserved_nano": held, "left_nano": limit - spent - held}


def _first(since: str) -> int:
    try:
        return int(datetime.strptime(since, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise refused(f"--since {since}: must be a date as in 2026-11-01") from None


def _day(start: int) -> str:
    return f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}"


def _row(name: str, total: Spent) -> tuple[str, ...]:
    counts = (total.requests, total.prompt, total.cached, total.output)
    return name, *(f"{count:,}" for count in counts), amount_of(total.nano), amount_of(total.unknown_nano)


def _print(table: list[tuple[str, ...]]) -> None:
    """Names to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        typer.echo("  ".join(cells).rstrip())
