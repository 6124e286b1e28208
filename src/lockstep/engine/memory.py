"""How much memory a program may take: what the machine has left, and what its cgroups allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Limit, use, and what of the use the kernel gives back before it ends a process: pages of files.
_FILES = {
    "cgroup2": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "cgroup": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def available_bytes(root: Path = Path("/")) -> int | None:
    """The memory that a program could take without swapping; None where the system does not say.

    Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def _of_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        yield int(kilobytes) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What each group that holds this process has left; a group is held by those above it."""
    for kind, mount, group in _mounted(root):
        for folder in (mount / group, *(mount / group).parents):
            with suppress(OSError, ValueError):  # no limit, or another system's files
                yield _left(folder, kind)
            if folder == mount:
                break


def _mounted(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """The kind of each mounted hierarchy, where it is, and the path of our group below that."""
    try:
        lines = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
        mounts = _lines(root / "proc/self/mountinfo")
    except OSError:
        return
    groups = {"cgroup2" if controllers == "" else controllers: path
              for _, controllers, path in (line for line in lines if len(line) == 3)}  # fmt: skip
    for line in mounts:
        ours, _, theirs = line.partition(" - ")
        fields, told = ours.split(), theirs.split()
        if len(fields) < 5 or len(told) < 3 or told[0] not in _FILES:
            continue
        names = told[2].split(",")
        wanted = "cgroup2" if told[0] == "cgroup2" else "memory" if "memory" in names else ""
        path = next((p for key, p in groups.items() if wanted and wanted in key.split(",")), None)
        if path is None:
            continue
        try:
            group = Path(path).relative_to(fields[3])
        except ValueError:  # a container shows its own group as the whole hierarchy
            group = Path()
        yield told[0], root / fields[4].lstrip("/"), group


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel; names of files in it are bytes of any kind."""
    return path.read_text(errors="surrogateescape").split("\n")


def _left(folder: Path, kind: str) -> int:
    limit_file, used_file, given_back = _FILES[kind]
    limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
    stat: dict[str, int] = {}
    with suppress(OSError, ValueError):  # without it none is given back
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in pairs}
    return max(0, limit - used + sum(stat.get(name, 0) for name in given_back))
