"""Which files of the audit log go: those of days that are no longer kept, and the oldest when all together are too large.

**Days are counted by the log, not by the clock.** A clock that is wrong for a moment must not delete everything. The day that
files are judged by follows the days of the files: at most one day at a time, or, after a longer step, only once the log has been
written on `CONFIRM_DAYS` different days beyond it. So a server that was off for a month deletes a few days later than it might.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from itertools import accumulate, takewhile

from poise.audit.files import LogFile

CONFIRM_DAYS = 3
STEP_MAX = timedelta(days=31)
"""Between two of these days at most: another jump confirms nothing."""
_ONE_DAY = timedelta(days=1)


def trusted_day(days: Sequence[date], today: date) -> date:
    """The day that the log's own days, in the order of its chain, and the clock's agree on."""
    trusted = days[0] if days else today
    beyond: list[date] = []
    for day in [*days, today]:
        if day <= trusted + _ONE_DAY:
            trusted, beyond = max(trusted, day), []
        elif not beyond or day < beyond[-1] or day > beyond[-1] + STEP_MAX:
            beyond = [day]
        elif day > beyond[-1]:
            beyond.append(day)
        while len(beyond) >= CONFIRM_DAYS:
            trusted = beyond.pop(0)
            while beyond and beyond[0] <= trusted + _ONE_DAY:
                trusted = beyond.pop(0)
    return min(trusted, today)


def has_jumped(days: Sequence[date], today: date) -> bool:
    """Whether the clock is further on than the log believes."""
    return today > trusted_day(days, today) + _ONE_DAY


def out_of_date(files: Sequence[LogFile], keep: timedelta, today: date) -> list[LogFile]:
    """The files from the oldest on whose time is over. A file is as old as the oldest day that stands after it in the chain."""
    now = trusted_day([file.day for file in files], today)
    ages = reversed(list(accumulate((file.day for file in reversed(files)), min)))
    over = takewhile(lambda aged: aged[1] + keep < now, zip(files, ages, strict=True))
    return [file for file, _ in over]


def too_many(files: Sequence[LogFile], sizes: Sequence[int], bytes_max: int) -> list[LogFile]:
    """The oldest files, as many as must go for the rest to fit. The last one stays: it is being written."""
    over = sum(sizes) - bytes_max
    gone = accumulate(sizes, initial=0)
    return [file for file, before in zip(files[:-1], gone, strict=False) if before < over]
