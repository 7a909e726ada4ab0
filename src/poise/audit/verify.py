"""Whether an audit log is what was written: every line from the first one kept to the last one known, and nothing else."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from poise.audit.chain import ChainError, Head, Link, check_line
from poise.audit.files import HEAD_NAME, LogFile, log_files


@dataclass(slots=True)
class Report:
    """What was found. `problem` is empty if all is well, else the first thing that is wrong, with file and line."""

    n_lines: int = 0
    n_files: int = 0
    n_contents: int = 0
    n_erased: int = 0
    """Lines whose content was erased, as is allowed."""
    first_seq: int = 0
    last_seq: int = 0
    problem: str = ""
    events: Counter[str] = field(default_factory=Counter)


def verify(folder: Path, key: bytes) -> Report:
    """Reads everything; modifies nothing. Lines that are written meanwhile do not matter."""
    report = Report()
    try:
        _verify(folder, key, report)
    except ChainError as error:
        report.problem = str(error)
    return report


def _verify(folder: Path, key: bytes, report: Report) -> None:
    files = log_files(folder)
    try:
        head = Head.decode((folder / HEAD_NAME).read_bytes(), key)
    except FileNotFoundError:
        if files:
            raise ChainError(f"{folder / HEAD_NAME} is missing: nothing tells how far the log goes") from None
        raise ChainError(f"{folder}: there is no audit log") from None
    # A file that ends before the first line that is kept is about to be deleted.
    kept = [file for file, after in pairwise(files) if after.first_seq > head.first.seq + 1] + files[-1:]
    at = head.first
    report.first_seq, report.n_files = at.seq + 1, len(kept)
    found_last = at == head.last
    for file in kept:
        at, seen = _verify_file(file, at, head.last, key, report)
        found_last = found_last or seen
    report.last_seq = at.seq
    if not found_last:
        if at.seq < head.last.seq:
            raise ChainError(f"ends with line {at.seq}, but was {head.last.seq} lines long: the end is missing")
        raise ChainError(f"line {head.last.seq} is not the one that was written last")


def _verify_file(file: LogFile, at: Link, last: Link, key: bytes, report: Report) -> tuple[Link, bool]:
    """The place after the file's last line, and whether the last line that is known was among them."""
    seen = False
    if file.first_seq != at.seq + 1:
        raise ChainError(f"{file.path.name} begins with line {file.first_seq}, but line {at.seq + 1} must follow")
    data = file.path.read_bytes()
    lines = data.split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            entry, at = check_line(line, at, key)
        except ChainError as error:
            raise ChainError(f"{file.path.name}, line {number} (entry {at.seq + 1}): {error}") from None
        seen = seen or at == last
        report.n_lines += 1
        report.n_contents += "content" in entry
        report.n_erased += "content_mac" in entry and "content" not in entry
        report.events[str(entry.get("event"))] += 1
    # Beyond the last line that is known, half a line is one that is just being written, or was when the power went.
    if tail and at.seq < last.seq:
        raise ChainError(f"{file.path.name}, line {len(lines) + 1} (entry {at.seq + 1}): is cut off")
    return at, seen


def last_entries(folder: Path, n: int) -> list[bytes]:
    """The last `n` lines, as they are."""
    lines: list[bytes] = []
    for file in reversed(log_files(folder)):
        lines = [line for line in file.path.read_bytes().split(b"\n") if line][-(n - len(lines)) :] + lines
        if len(lines) >= n:
            break
    return lines
