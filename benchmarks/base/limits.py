"""Cores and memory that this process may use: its affinity, and the limits of its container (cgroup v2 or v1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.base.errors import UserError

ROOT = Path("/")
UNLIMITED = 1 << 60
"""Bytes from which on a limit of cgroup v1 means none (it says 2^63 less a page)."""


def usable_cores(root: Path = ROOT) -> int:
    """Cores that processes of this one's container can keep busy: affinity and CPU quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the container may hold, or that the machine has; None where neither can be read."""
    found = [size for size in _memory_limits(root) if size < UNLIMITED]
    total = _meminfo(root).get("MemTotal")
    return min([*found, *([total] if total else [])], default=None)


def require_memory(size: int, what: str, advice: str, root: Path = ROOT) -> None:
    """Raise UserError where `what` needs `size` bytes and there are less: said before they are asked for."""
    limit = memory_limit(root)
    if limit is not None and size > limit:
        raise UserError(f"{what} need {size / 2**30:.1f} GiB, and there are {limit / 2**30:.1f} GiB here; {advice}")


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas in cores, of this process's groups and of those above them."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1: none
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    """Memory limits in bytes, of this process's groups and of those above them."""
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdigit():
                yield int(text)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that hold this process, for version 2 and for a controller of version 1.

    Each is followed by those above it, whose limits hold as well. A path that is not mounted here, as in containers
    that see their host's names, stands for the mount itself.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        tops = [mount, mount / "unified"] if number == "0" else [mount / controllers, mount / controller]
        for top in tops:
            inside = top / path.strip("/")
            start = inside if inside.is_dir() else top
            yield from (folder for folder in (start, *start.parents) if folder.is_relative_to(top))


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[1].isdigit()}


def _text(path: Path) -> str:
    """What a file says, without the space around it; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
