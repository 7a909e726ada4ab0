"""The file of what was spent: totals by window, tenant and backend, and what is reserved for requests that are under way.

One thread owns it, so that nobody in the event loop waits for the disk. It writes all that has come meanwhile in one go, and has
the disk confirm it (WAL, synchronous=FULL): a reservation outlives a power failure, or nothing was sent for it. That costs a few
milliseconds before work that takes hundreds, and less for each of many. What cannot be written now is tried again with the next
that comes; until then reservations fail, and nothing leaves.

What a server that was killed had reserved is charged whole by the next one."""

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from poise.gateway.models.money.prices import NANO_MAX
from poise.gateway.models.money.windows import KEPT, PERIODS, start_of

log = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Counts of what costs nothing are written so often; a crash loses them."""
ERASED = "~"
"""Of tenants whose data was erased; no name begins with it."""
_VERSION = 1
_SCHEMA = """
BEGIN;
CREATE TABLE spent (
    period TEXT, start INTEGER, tenant TEXT, backend TEXT, requests INTEGER, prompt INTEGER, cached INTEGER, output INTEGER,
    nano INTEGER, unknown INTEGER, unknown_nano INTEGER, PRIMARY KEY (period, start, tenant, backend)
) WITHOUT ROWID;
CREATE TABLE reserved (id INTEGER PRIMARY KEY, at INTEGER, tenant TEXT, backend TEXT, request TEXT, nano INTEGER);
PRAGMA user_version = 1;
COMMIT;
"""


class LedgerError(Exception):
    """The file cannot be used. The message is a line that names it."""


class Spent(NamedTuple):
    """`unknown`: requests whose usage never came, and which were charged whole; `unknown_nano`: with how much."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano: int = 0
    unknown: int = 0
    unknown_nano: int = 0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(*(min(one + another, NANO_MAX) for one, another in zip(self, other, strict=True)))


class Line(NamedTuple):
    """What was spent in one window, by one tenant at one backend."""

    period: str
    start: int
    tenant: str
    backend: str
    spent: Spent


class Reserved(NamedTuple):
    at: int
    tenant: str
    backend: str
    request: str
    nano: int


class _Job(NamedTuple):
    do: Callable[[sqlite3.Connection], Any]
    done: Future[Any] | None
    """Who waits for it; None: it is tried until it is done."""


_ADD = "INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OF = "SELECT * FROM spent WHERE period = ? AND start = ? AND tenant = ? AND backend = ?"
_ALL = "SELECT * FROM spent ORDER BY period, start, tenant, backend"
_OF_TENANT = "SELECT * FROM spent WHERE tenant = ?"
_OLD = """DELETE FROM spent WHERE period = ? AND start NOT IN
    (SELECT DISTINCT start FROM spent WHERE period = ? ORDER BY start DESC LIMIT ?)"""
_ALIASES = """SELECT * FROM spent AS one WHERE tenant > ? AND tenant < ?
    AND start < (SELECT max(start) FROM spent AS other WHERE other.period = one.period)"""


class Books:
    """The one writer of a file; without a path it is in memory only."""

    def __init__(self, path: Path | None) -> None:
        """Raises LedgerError."""
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._owed: list[_Job] = []
        self._counts: dict[tuple[int, str, str], Spent] = {}
        self._counting = threading.Lock()
        self._lock = -1
        self._wipes = False
        """What was overwritten is to go from the log of changes as well."""
        try:
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
            _prepare(self._connection)
        except BlockingIOError:
            os.close(self._lock)
            raise LedgerError(f"another server writes the ledger {path}; set egress.ledger") from None
        except (OSError, sqlite3.Error) as error:
            if self._lock >= 0:
                os.close(self._lock)
            forgets = "move it away to begin a new one, which knows nothing of what was spent"
            raise LedgerError(f"the ledger {path} cannot be used: {error}; mend that, or {forgets}") from error
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def lines(self) -> list[Line]:
        """All of them; asked before anything else is."""
        return _lines(self._connection)

    def reserve(self, number: int, entry: Reserved) -> Future[None]:
        """Is done when the disk has it. Raises sqlite3.Error."""
        return self._put(lambda c: c.execute("INSERT INTO reserved VALUES (?, ?, ?, ?, ?, ?)", (number, *entry)))

    def end(self, number: int, at: int, tenant: str, backend: str, spent: Spent | None) -> None:
        """Sooner or later: what was reserved no longer is, and this was spent instead."""

        def do(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM reserved WHERE id = ?", (number,))
            if spent is not None:
                _add(connection, at, tenant, backend, spent)

        self._queue.put(_Job(do, None))

    def count(self, at: int, tenant: str, backend: str, spent: Spent) -> None:
        """Something that cost nothing. No write of its own."""
        key = start_of("hour", at), tenant, backend
        with self._counting:
            self._counts[key] = self._counts.get(key, Spent()).plus(spent)

    def prune(self) -> None:
        """Of each period, the newest windows are kept."""
        self._queue.put(_Job(_prune, None))

    def rename(self, tenant: str, alias: str) -> Future[int]:
        """The number of lines that were the tenant's, of which nothing is left in the file. Raises sqlite3.Error."""

        def do(connection: sqlite3.Connection) -> int:
            self._wipes = True
            connection.execute("UPDATE reserved SET tenant = ? WHERE tenant = ?", (alias, tenant))
            return _rename(connection, alias, _OF_TENANT, (tenant,))

        self._queue.put(self._taken())
        return self._put(do)

    def close(self) -> None:
        """Write what is left."""
        self._queue.put(None)
        self._thread.join()
        self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)

    def _put(self, do: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        self._queue.put(_Job(do, done))
        return done

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            jobs: list[_Job] = []
            with suppress(Empty):
                job = self._queue.get(timeout=FLUSH_S)
                while job is not None:
                    jobs.append(job)
                    job = self._queue.get_nowait()
                goes_on = False
            if self._counts:
                jobs.append(self._taken())
            if jobs or self._owed:
                self._write([*self._owed, *jobs])
        if self._owed:
            log.error(
                "%s entries of the ledger could not be written; what they end is charged whole at the next start", len(self._owed)
            )

    def _write(self, jobs: Sequence[_Job]) -> None:
        """All in one transaction."""
        try:
            with self._connection:
                results = [job.do(self._connection) for job in jobs]
            if self._wipes:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._wipes = False
        except Exception as error:  # whatever it is, who waits must hear of it
            if not self._owed:
                log.error("the ledger cannot be written, so nothing that costs money is sent: %s", error)
            self._owed = [job for job in jobs if job.done is None]
            for job in jobs:
                if job.done is not None:
                    job.done.set_exception(error)
            return
        self._owed = []
        for job, result in zip(jobs, results, strict=True):
            if job.done is not None:
                job.done.set_result(result)

    def _taken(self) -> _Job:
        """Writing what was counted until now."""
        with self._counting:
            counts, self._counts = self._counts, {}

        def do(connection: sqlite3.Connection) -> None:
            for (at, tenant, backend), spent in counts.items():
                _add(connection, at, tenant, backend, spent)

        return _Job(do, None)


def read(path: Path) -> tuple[list[Line], list[Reserved]]:
    """What a file holds, also while a server writes it. Raises LedgerError."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _check(connection)
            reserved = connection.execute("SELECT at, tenant, backend, request, nano FROM reserved")
            return _lines(connection), [Reserved(*row) for row in reserved]
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} cannot be read: {error}") from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Make it, or go on with it: what a server before this one had reserved is charged."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        connection.executescript(_SCHEMA)
    _check(connection)
    with connection:
        for at, tenant, backend, nano in connection.execute("SELECT at, tenant, backend, nano FROM reserved").fetchall():
            _add(connection, at, tenant, backend, Spent(requests=1, nano=nano, unknown=1, unknown_nano=nano))
        connection.execute("DELETE FROM reserved")
        _prune(connection)


def _check(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, and this poise knows {_VERSION}")


def _lines(connection: sqlite3.Connection, query: str = _ALL, values: Sequence[object] = ()) -> list[Line]:
    rows = connection.execute(query, values).fetchall()
    return [Line(period, start, tenant, backend, Spent(*spent)) for period, start, tenant, backend, *spent in rows]


def _add(connection: sqlite3.Connection, at: int, tenant: str, backend: str, spent: Spent) -> None:
    """To the windows of that moment."""
    for period in PERIODS:
        _add_line(connection, Line(period, start_of(period, at), tenant, backend, spent))


def _add_line(connection: sqlite3.Connection, line: Line) -> None:
    *key, spent = line
    for had in _lines(connection, _OF, key):
        spent = spent.plus(had.spent)
    connection.execute(_ADD, (*key, *spent))


def _prune(connection: sqlite3.Connection) -> None:
    """Windows beyond the newest go, and of those that are over also what told erased tenants apart."""
    for period in PERIODS:
        connection.execute(_OLD, (period, period, KEPT[period]))
    _rename(connection, ERASED, _ALIASES, (ERASED, ERASED + "~"))


def _rename(connection: sqlite3.Connection, alias: str, query: str, values: Sequence[object]) -> int:
    """How many lines had another name."""
    lines = _lines(connection, query, values)
    for line in lines:
        connection.execute("DELETE FROM spent WHERE period = ? AND start = ? AND tenant = ? AND backend = ?", line[:4])
        _add_line(connection, line._replace(tenant=alias))
    return len(lines)
