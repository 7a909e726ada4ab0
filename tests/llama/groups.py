"""A host with control groups, made of files."""

from __future__ import annotations

from pathlib import Path


def fake_host(tmp_path: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Its /proc and its /sys/fs/cgroup. `groups`: those of this process, as /proc/self/cgroup has them."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(groups)
    for name, content in files.items():
        path = cgroup / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return proc, cgroup
