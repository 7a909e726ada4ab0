"""The audit log's files: one folder, one file a day at least, named by day and first line, and the head file.

audit-20261124-000000000001.jsonl
head.json"""

import os
import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

HEAD_NAME = "head.json"
_NAME = re.compile(r"audit-(\d{8})-(\d{12})\.jsonl")


@dataclass(frozen=True, slots=True, order=True)
class LogFile:
    """`first_seq` is the number of its first line, `day` that line's day."""

    first_seq: int
    day: date
    path: Path


def file_path(folder: Path, day: date, first_seq: int) -> Path:
    return folder / f"audit-{day:%Y%m%d}-{first_seq:012d}.jsonl"


def log_files(folder: Path) -> list[LogFile]:
    """In the order of the chain."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            try:
                day = datetime.strptime(match[1], "%Y%m%d").date()
            except ValueError:
                continue
            found.append(LogFile(int(match[2]), day, path))
    return sorted(found)


def replace_file(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user only, and on disk when this returns."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # also of a draft that was left
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
