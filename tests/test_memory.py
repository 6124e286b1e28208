"""How much memory a program may take, on machines and in containers of several makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lockstep.engine.memory import available_bytes

MIB = 1 << 20
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
BOTH = V2.format(root="/") + V1.format(root="/")


def machine(root: Path, *, free: int, group: str, mount: str) -> Path:
    """The files of a machine with so many bytes left."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/self/mountinfo").write_text(mount)
    return root


def limited(folder: Path, limit: str, used: int, *, files: int = 0, v1: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else (
        "memory.max", "memory.current",
    )  # fmt: skip
    prefix = "total_" if v1 else ""
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {files - files // 4}\n{prefix}active_file {files // 4}\n"
    )


def test_this_machine_has_a_part_of_its_memory_left() -> None:
    found = available_bytes()
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_group_of_version_2_is_asked(tmp_path: Path) -> None:
    root = machine(tmp_path, free=900 * MIB, group="0::/a/b\n", mount=V2.format(root="/"))
    assert available_bytes(root) == 900 * MIB
    groups = tmp_path / "sys/fs/cgroup"
    limited(groups / "a/b", "max", 10 * MIB)
    assert available_bytes(root) == 900 * MIB
    limited(groups / "a/b", str(500 * MIB), 300 * MIB, files=100 * MIB)
    assert available_bytes(root) == 300 * MIB
    limited(groups / "a", str(400 * MIB), 350 * MIB)
    assert available_bytes(root) == 50 * MIB, "the group above has less left"
    limited(groups / "a", str(400 * MIB), 450 * MIB)
    assert available_bytes(root) == 0


def test_the_group_of_version_1_is_asked(tmp_path: Path) -> None:
    group = "8:pids:/\n4:memory:/jobs/7\n1:cpu:/\n0::/\n"
    root = machine(tmp_path, free=900 * MIB, group=group, mount=BOTH)
    folder = tmp_path / "sys/fs/cgroup/memory/jobs/7"
    limited(folder, str((1 << 63) - 4096), 10 * MIB, v1=True)
    assert available_bytes(root) == 900 * MIB
    limited(folder, str(64 * MIB), 40 * MIB, files=16 * MIB, v1=True)
    assert available_bytes(root) == 40 * MIB


@pytest.mark.parametrize("v1", [False, True])
def test_a_container_finds_its_group_where_it_is_mounted(tmp_path: Path, v1: bool) -> None:
    """Docker shows the group of a container as the root of its hierarchy."""
    group = "4:memory:/docker/7f\n" if v1 else "0::/docker/7f\n"
    mount = (V1 if v1 else V2).format(root="/docker/7f")
    root = machine(tmp_path, free=900 * MIB, group=group, mount=mount)
    folder = tmp_path / "sys/fs/cgroup" / ("memory" if v1 else "")
    limited(folder, str(64 * MIB), 40 * MIB, v1=v1)
    assert available_bytes(root) == 24 * MIB
    (tmp_path / "proc/self/cgroup").write_text(group.replace("7f", "elsewhere"))
    assert available_bytes(root) == 24 * MIB


def test_a_limit_counts_where_nothing_says_what_is_given_back(tmp_path: Path) -> None:
    root = machine(tmp_path, free=900 * MIB, group="0::/a\n", mount=V2.format(root="/"))
    limited(tmp_path / "sys/fs/cgroup/a", str(64 * MIB), 40 * MIB)
    stat = tmp_path / "sys/fs/cgroup/a/memory.stat"
    for damaged in ("anon 5\n", "anon 5\ninactive_file\n", "anon 5\ninactive_file many\n"):
        stat.write_text(damaged)
        assert available_bytes(root) == 24 * MIB
    stat.unlink()
    assert available_bytes(root) == 24 * MIB


def test_the_name_of_a_mount_is_bytes_of_any_kind(tmp_path: Path) -> None:
    root = machine(tmp_path, free=900 * MIB, group="0::/a\n", mount="")
    odd = b"40 31 0:37 / /mnt/caf\xe9\x85 rw - ext4 /dev/caf\xe9 rw\n"
    (tmp_path / "proc/self/mountinfo").write_bytes(odd + V2.format(root="/").encode())
    limited(tmp_path / "sys/fs/cgroup/a", str(64 * MIB), 40 * MIB)
    assert available_bytes(root) == 24 * MIB


def test_a_system_that_does_not_say_sets_no_bound(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
