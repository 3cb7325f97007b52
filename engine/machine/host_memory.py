"""How much host memory is free: one rule for placement, plans, a worker's checks and the doctor.

Limits of control groups count as well as the machine's memory. Cached file pages that no process has mapped count as
free, although a group's usage includes them: the kernel drops them before it refuses memory. A worker that has just
read its weights fills its limit with such pages. Both lists count, `inactive_file` and `active_file`: a file that was
read twice is on the second one and is dropped in the same way; the kernel counts them in MemAvailable, too
(Documentation/filesystems/proc.rst). Not counted are mapped pages, which are libraries and weights of running
processes, and `slab_reclaimable`, which the kernel only might reclaim (Documentation/admin-guide/cgroup-v2.rst) and
which is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: A limit of this or more means "no limit": version 1 writes about 2^63, rounded down to whole pages.
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class _Version:
    """Names of the memory controller's files, and where it is usually mounted."""

    mount: str
    limits: tuple[str, ...]
    used: str
    #: Keys in memory.stat, for a group and all below it: cached file pages, and those of them that are mapped.
    cached: tuple[str, ...]
    mapped: str


_ONE = _Version(
    "sys/fs/cgroup/memory",
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "total_mapped_file",
)
_TWO = _Version(
    # Above memory.high a group is not killed, but slowed down until it is below the limit again.
    "sys/fs/cgroup",
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file"),
    "file_mapped",
)


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still allocate, on the machine and in its control groups; None: unknown.

    `root` is the folder of /proc and /sys. The smallest figure counts: MemAvailable of /proc/meminfo, and the limit of
    this process' control group, version 1 or 2, and of each group above it that can be seen. Swap is not counted.
    """
    limits = [*_available(root), *_of_groups(root)]
    return max(0, min(limits)) if limits else None


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the free bytes of this process' group and of those above it, in both versions."""
    paths = dict(_paths(root))
    for version in (_ONE, _TWO):
        mount, inside = _mounted(root, version, paths.get(version, "/"))
        # Groups that the mount does not show are skipped, for example if a container sees its own group as the root.
        group = mount
        groups = [mount] + [group := group / name for name in inside]
        for folder in groups:
            free = _free_in(folder, version)
            if free is not None:
                yield free


def _free_in(folder: Path, version: _Version) -> int | None:
    """Return the free bytes of one group; None if the folder is not a group, or the group has no limit."""
    used = _number(folder / version.used)
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None]
    stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat") if " " in line)
    # Version 1: the limit of a parent group, which may not be visible from here.
    limits += [int(stat["hierarchical_memory_limit"])] if "hierarchical_memory_limit" in stat else []
    limit = min(limits, default=_NO_LIMIT)
    if used is None or limit >= _NO_LIMIT:
        return None
    cached = sum(int(stat.get(name, 0)) for name in version.cached)
    return limit - used + max(0, cached - int(stat.get(version.mapped, 0)))


def _paths(root: Path) -> Iterator[tuple[_Version, str]]:
    """Yield the path of this process' group in each version, from /proc/self/cgroup."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            yield _ONE, path
        elif number == "0" and not controllers:
            yield _TWO, path


def _mounted(root: Path, version: _Version, path: str) -> tuple[Path, list[str]]:
    """Return where a version is mounted, and the names below it that lead to the group at `path`."""
    mount, top = root / version.mount, "/"
    for line in _lines(root / "proc/self/mountinfo"):
        words, _, rest = (part.split() for part in line.partition(" - "))
        kind, options = (rest[0], rest[-1].split(",")) if rest else ("", [])
        if (version is _TWO and kind == "cgroup2") or (version is _ONE and kind == "cgroup" and "memory" in options):
            mount, top = root / words[4].lstrip("/"), words[3]
            break
    names = [name for name in path.split("/") if name and name != ".."]
    parts = [name for name in top.split("/") if name]
    # With version 1 Docker mounts a container's own group, but /proc has the full path.
    inside = names[len(parts) :] if names[: len(parts)] == parts else names
    return mount, inside


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no file, or if it says "max" (no limit)."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
