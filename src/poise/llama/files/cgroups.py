"""The control groups that hold this process, of both versions: what each of them allows it, up to the root."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def folders(controller: str, proc: Path = PROC, cgroup: Path = CGROUP) -> Iterator[tuple[int, Path]]:
    """The version and the folder of each group with this controller, from the process's own to the root.

    A container may see its own group as the root, under a path that does not exist inside: the parents cover it."""
    for line in text_of(proc / "self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version, base = (1, cgroup / controller) if controllers else (2, cgroup)
        if controllers and not base.exists():  # mounted under all of its names, without a link for each
            base = cgroup / controllers
        for folder in (Path(group), *Path(group).parents):
            yield version, base / folder.relative_to("/")


def cpu_quotas(proc: Path = PROC, cgroup: Path = CGROUP) -> Iterator[tuple[float, Path]]:
    """The cores that each group with a quota allows, and its folder, from the process's own group to the root."""
    for version, folder in folders("cpu", proc, cgroup):
        if version == 2:
            found = text_of(folder / "cpu.max").split()
        else:
            found = [text_of(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(found) == 2 and all(number.isdigit() and int(number) for number in found):  # others: "max", or -1
            yield int(found[0]) / int(found[1]), folder


def usable_threads(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Cores this process may use, by its affinity and by the CPU quotas of all its groups; at least one.

    A part of a core is left out: threads that use a quota up early all stand still until its period is over."""
    cores = min([float(len(os.sched_getaffinity(0))), *(quota for quota, _ in cpu_quotas(proc, cgroup))])
    return max(1, int(cores))


def text_of(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
