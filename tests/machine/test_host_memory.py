"""Free memory of the host, from file trees in the shape of /proc and /sys/fs/cgroup."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path

import pytest

from engine.doctor import checks
from engine.machine.host_memory import free_host_memory
from engine.machine.profiles import choose_profile, free_on_host
from engine.serving.worker.fitness import UnfitError, check_memory

GIB = 2**30
#: What version 1 says where there is no limit: 2^63 - 1, rounded down to pages of 4 KiB, and of 64 KiB.
UNLIMITED = (9223372036854771712, 9223372036854710272)
ID = "32256fdefa9bb38472cd82330b6c9d02"


def meminfo(root: Path, available: int) -> None:
    write(root / "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n")


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def two(folder: Path, *, most: str | int, used: int, high: str | int = "max", **stat: int) -> None:
    """Write the files of a group of version 2, as a kernel 6 has them."""
    write(folder / "memory.max", most)
    write(folder / "memory.high", high)
    write(folder / "memory.current", used)
    zeros = dict.fromkeys(("anon", "file", "kernel", "file_mapped", "file_dirty", "inactive_anon", "active_anon"), 0)
    result = zeros | {"inactive_file": 0, "active_file": 0, "unevictable": 0, "slab_reclaimable": 0} | stat
    write(folder / "memory.stat", "\n".join(f"{name} {size}" for name, size in result.items()))


def one(folder: Path, *, most: int, used: int, above: int = UNLIMITED[0], **stat: int) -> None:
    """Write the files of a group of version 1: those of the group alone, and with "total_" of all below it as well."""
    write(folder / "memory.limit_in_bytes", most)
    write(folder / "memory.usage_in_bytes", used)
    names = ("cache", "rss", "mapped_file", "inactive_anon", "active_anon", "inactive_file", "active_file")
    own = "\n".join(f"{name} 0" for name in names)
    total = "\n".join(f"total_{name} {stat.get(name, 0)}" for name in names)
    write(folder / "memory.stat", f"{own}\nhierarchical_memory_limit {min(most, above)}\n{total}")


def cgroup(root: Path, *lines: str) -> None:
    write(root / "proc/self/cgroup", "\n".join(lines))


def mounts(root: Path, *lines: str) -> None:
    tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"
    write(root / "proc/self/mountinfo", "\n".join([tmpfs, *lines]))


def worker(root: Path) -> Path:
    """Write a container whose worker has just read its weights: 34.4 GB, all but used up by cached pages."""
    meminfo(root, 200 * GIB)
    cgroup(root, "0::/")
    mounts(root, "32 31 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate")
    two(root / "sys/fs/cgroup", most=34_400_000_000, used=33_000_000_000, inactive_file=30_000_000_000)
    return root


def test_a_machine_without_groups_has_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    meminfo(tmp_path, 4 * GIB)
    assert free_host_memory(tmp_path) == 4 * GIB


def test_nothing_is_known_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_host_memory(tmp_path) is None
    monkeypatch.setattr("engine.machine.profiles.free_host_memory", partial(free_host_memory, tmp_path))
    assert free_on_host() == 0
    # So memory=auto takes the profile that needs least.
    assert choose_profile({"transformer": 10, "vae": 1}, 1, device_free=None, host_free=0)[0] == "lowest"


def test_this_machine_says_something() -> None:
    result = free_host_memory()
    assert result is None or result > 10**7


def test_pages_of_files_that_were_just_read_are_free(tmp_path: Path) -> None:
    assert free_host_memory(worker(tmp_path)) == 31_400_000_000


def test_placement_plan_fitness_and_doctor_go_by_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = partial(free_host_memory, worker(tmp_path / "root"))
    for module in ("machine.profiles", "serving.worker.fitness", "doctor.checks"):
        monkeypatch.setattr(f"engine.{module}.free_host_memory", rule)
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        # Sparse.
        file.truncate(31_400_000_000)
    assert free_on_host() == 31_400_000_000
    check_memory(tmp_path)
    with weights.open("r+b") as file:
        file.truncate(31_400_000_001)
    with pytest.raises(UnfitError):
        check_memory(tmp_path)
    (host,) = [one for one in checks.check_memory(checks.CheckContext(["model=tiny"])) if one.name == "host memory"]
    assert host.details["free_bytes"] == 31_400_000_000
    for module in ("engine.assembly.estimates", "engine.loading.placement"):
        assert vars(importlib.import_module(module))["free_on_host"] is free_on_host


def test_pages_that_were_read_twice_give_way_and_mapped_ones_do_not(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    two(
        tmp_path / "sys/fs/cgroup",
        most=32 * GIB,
        used=32 * GIB,
        inactive_file=8 * GIB,
        active_file=12 * GIB,
        file_mapped=3 * GIB,
        slab_reclaimable=GIB,
    )
    assert free_host_memory(tmp_path) == 17 * GIB


@pytest.mark.parametrize("most", ["max", 100 * GIB])
def test_the_machine_counts_where_it_has_less_than_its_group(tmp_path: Path, most: str | int) -> None:
    meminfo(tmp_path, 4 * GIB)
    two(tmp_path / "sys/fs/cgroup", most=most, used=GIB)
    assert free_host_memory(tmp_path) == 4 * GIB


def test_a_group_that_would_be_slowed_down_has_no_more(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    two(tmp_path / "sys/fs/cgroup", most="max", high=8 * GIB, used=2 * GIB)
    assert free_host_memory(tmp_path) == 6 * GIB


def test_a_limit_that_stands_above_counts_for_what_stands_below_it(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    cgroup(tmp_path, "0::/kubepods.slice/pod1.slice/cri-1.scope")
    mounts(tmp_path, "32 31 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    slices = tmp_path / "sys/fs/cgroup/kubepods.slice"
    two(slices, most="max", used=60 * GIB)
    # Others of the pod use it up, too.
    two(slices / "pod1.slice", most=16 * GIB, used=12 * GIB, inactive_file=GIB)
    two(slices / "pod1.slice/cri-1.scope", most="max", used=4 * GIB)
    assert free_host_memory(tmp_path) == 5 * GIB


def test_a_group_outside_of_what_is_shown_is_looked_for_at_the_mount(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    cgroup(tmp_path, "0::/../../system.slice/other.scope")
    two(tmp_path / "sys/fs/cgroup", most=8 * GIB, used=GIB)
    assert free_host_memory(tmp_path) == 7 * GIB


@pytest.mark.parametrize("most", UNLIMITED)
def test_version_1_has_numbers_that_mean_no_limit(tmp_path: Path, most: int) -> None:
    folder = tmp_path / "sys/fs/cgroup/memory"
    one(folder, most=most, used=GIB, above=most)
    # Nothing says how much there is.
    assert free_host_memory(tmp_path) is None
    meminfo(tmp_path, 4 * GIB)
    assert free_host_memory(tmp_path) == 4 * GIB


def test_version_1_in_a_container_that_is_told_its_whole_path(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    cgroup(tmp_path, f"4:memory:/docker/{ID}/inner", "1:name=systemd:/docker/x", "0::/system.slice")
    mounts(
        tmp_path,
        f"35 31 0:32 /docker/{ID} /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory",
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
    )
    mount = tmp_path / "sys/fs/cgroup/memory"
    one(mount, most=34_400_000_000, used=33_000_000_000, inactive_file=30_000_000_000)
    one(mount / "inner", most=UNLIMITED[0], used=20_000_000_000, inactive_file=GIB)
    assert free_host_memory(tmp_path) == 31_400_000_000


def test_version_1_on_a_host_with_nested_groups(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    cgroup(tmp_path, "9:name=systemd:/", "4:cpu,memory:/batch/job")
    mounts(tmp_path, "35 31 0:32 / /sys/fs/cgroup/cpu,memory rw - cgroup cgroup rw,cpu,memory")
    mount = tmp_path / "sys/fs/cgroup/cpu,memory"
    one(mount, most=UNLIMITED[0], used=50 * GIB)
    one(mount / "batch", most=20 * GIB, used=19 * GIB, active_file=6 * GIB, mapped_file=2 * GIB)
    one(mount / "batch/job", most=UNLIMITED[0], used=GIB)
    assert free_host_memory(tmp_path) == 5 * GIB


def test_version_1_knows_a_limit_of_a_group_that_is_not_shown(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    one(tmp_path / "sys/fs/cgroup/memory", most=UNLIMITED[0], used=3 * GIB, above=10 * GIB)
    assert free_host_memory(tmp_path) == 7 * GIB


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    meminfo(tmp_path, 64 * GIB)
    two(tmp_path / "sys/fs/cgroup", most=GIB, used=GIB + 4096)
    assert free_host_memory(tmp_path) == 0
