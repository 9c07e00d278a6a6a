"""What control groups leave this process: memory, processor time, processors. Version 1, version 2, and both at once. No torch.

Every group counts from the process's own up to the top of what is mounted, since a parent's limit bounds its children: a pod's its
containers, a slice's its services. What is no limit (`max`, -1, version 1's huge numbers) or cannot be read bounds nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60  # version 1 writes "none" as the largest number of whole pages
_FILES = (
    "active_file",
    "inactive_file",
)  # pages of files, in use lately or not: dropped on demand, written back if need be
_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces


@dataclass(frozen=True, slots=True)
class Bound:
    """How much there is of something, in bytes or cores, and what says so, for people."""

    amount: float
    source: str


@dataclass(frozen=True, slots=True)
class _Mount:
    """One mounted hierarchy: `top` is the group at its mount point, `controllers` are version 1's, or "" alone for version 2."""

    version: int
    controllers: frozenset[str]
    top: str
    point: Path


def memory_bounds(root: Path = Path("/")) -> list[Bound]:
    """What each limit leaves, in bytes: the limit, less what the group uses, pages of files and kernel caches not counted as used.

    Those are what the kernel drops before it lets a limit be exceeded. `memory.high` is a limit too: beyond it the kernel
    slows a process down until it is of no use.

    Args:
        root: of the file system.
    """
    bounds: list[Bound] = []
    for version, folders in _chains(root, "memory"):
        for folder in folders:
            bounds += _memory_2(folder) if version == 2 else _memory_1(folder, own=folder == folders[0])
    return bounds


def cpu_bounds(root: Path = Path("/")) -> list[Bound]:
    """How many cores each limit gives, in part or whole: quotas of processor time, and sets of processors.

    Args:
        root: of the file system.
    """
    bounds = []
    for version, folders in _chains(root, "cpu"):
        for folder in folders:
            name = "cpu.max" if version == 2 else "cpu.cfs_quota_us"
            quota = _words(folder / name)
            if version == 1:
                quota += _words(folder / "cpu.cfs_period_us")
            cores = _share(*quota) if len(quota) == 2 else None
            if cores is not None:
                bounds.append(Bound(cores, f"{name} of {folder}"))
    for version, folders in _chains(root, "cpuset"):
        for folder in folders:
            for name in ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus"):
                listed = _listed(" ".join(_words(folder / name)))
                if listed:
                    bounds.append(Bound(listed, f"{name} of {folder}"))
    return bounds


def _memory_2(folder: Path) -> Iterator[Bound]:
    used, stat = _number(folder / "memory.current") or 0, _stat(folder)
    kept = used - sum(stat.get(name, 0) for name in (*_FILES, "slab_reclaimable"))
    for name in ("memory.max", "memory.high"):
        limit = _number(folder / name)
        if limit is not None:
            yield _left(limit, kept, f"{name} of {folder}")


def _memory_1(folder: Path, own: bool) -> Iterator[Bound]:
    """`own`: whether it is the process's own group. One above it bounds it only if it counts its children."""
    if not own and _words(folder / "memory.use_hierarchy") == ["0"]:
        return
    used, stat = _number(folder / "memory.usage_in_bytes") or 0, _stat(folder)
    kept = used - sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _FILES)
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is not None:
        yield _left(limit, kept, f"memory.limit_in_bytes of {folder}")
    # The least of all parents, those too that a container cannot see.
    above = stat.get("hierarchical_memory_limit", _UNLIMITED)
    if above < min(_UNLIMITED, _UNLIMITED if limit is None else limit):
        yield _left(above, kept, f"hierarchical_memory_limit of {folder}")


def _left(limit: int, kept: int, source: str) -> Bound:
    return Bound(min(limit, max(0, limit - kept)), source)


def _share(quota: str, period: str) -> float | None:
    if not quota.isdecimal() or not period.isdecimal() or not int(period):  # "max", -1
        return None
    return int(quota) / int(period)


def _listed(cpus: str) -> int:
    """How many are in a list such as `0-3,8`."""
    found = re.findall(r"(\d+)(?:-(\d+))?", cpus)
    return len({cpu for first, last in found for cpu in range(int(first), int(last or first) + 1)})


def _chains(root: Path, controller: str) -> Iterator[tuple[int, list[Path]]]:
    """The version of each mounted hierarchy that knows the controller, with the process's group there and all above it."""
    groups = _membership(root)
    for mount in _mounts(root):
        key = "" if mount.version == 2 else controller
        group = groups.get(key) if key in mount.controllers else None
        if group is None:
            continue
        folder = _inside(mount, group)
        chain = [
            folder,
            *(parent for parent in folder.parents if parent == mount.point or mount.point in parent.parents),
        ]
        yield mount.version, chain


def _inside(mount: _Mount, group: str) -> Path:
    """Where the group is in the mount. A container may see its own group at the mount point, under the name it has outside."""
    top = mount.top.rstrip("/")
    within = group.removeprefix(top) if group == top or group.startswith(f"{top}/") else ""
    folder = mount.point / within.strip("/")
    return folder if ".." not in within.split("/") and folder.is_dir() else mount.point


def _membership(root: Path) -> dict[str, str]:
    """The process's group in each hierarchy, by controller; by "" in that of version 2."""
    found = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(","), group))
    return found


def _mounts(root: Path) -> list[_Mount]:
    """Each line is: numbers, top, mount point, options, `-`, type, device, options of the file system."""
    mounts = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        controllers = frozenset(kind[2].split(",") if version == 1 else [""])
        mounts.append(_Mount(version, controllers, _path(fields[3]), root / _path(fields[4]).lstrip("/")))
    return mounts or _usual_mounts(root)


def _usual_mounts(root: Path) -> list[_Mount]:
    base = root / "sys/fs/cgroup"
    names = [folder.name for folder in sorted(base.iterdir()) if folder.is_dir()] if base.is_dir() else []
    ones = [_Mount(1, frozenset(name.split(",")), "/", base / name) for name in names if _is_version_1(name)]
    return ones or [_Mount(2, frozenset([""]), "/", base)]


def _is_version_1(name: str) -> bool:
    return not {"memory", "cpu", "cpuset"}.isdisjoint(name.split(","))


def _path(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _stat(folder: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    """The number in a file; None if it is no limit, or is none."""
    words = _words(path)
    if len(words) != 1 or not words[0].isdecimal() or int(words[0]) >= _UNLIMITED:
        return None
    return int(words[0])


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
