"""What control groups leave: trees of files as Docker, Kubernetes and systemd make them, under a root of the test's own."""

import os
import resource

import pytest

from engine import machine
from engine.cgroups import cpu_bounds, memory_bounds
from engine.machine import free_memory, process_bounds, usable_cores

MIB = 2**20
NONE_V1 = "9223372036854771712"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"


class Tree:
    """A file system of control groups."""

    def __init__(self, root):
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def process(self, membership, *mounts):
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in membership.split()))
        other = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
        (self.root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in (other, *mounts)))

    def group(self, path, **files):
        """Make a group with these files; `__` in a name stands for a dot."""
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")
        return folder

    def memory(self):
        found = memory_bounds(self.root)
        least = min(found, key=lambda bound: bound.amount)
        return least.amount, least.source.removeprefix("memory.").replace(f"{self.root}/sys/fs/cgroup", "")

    def cores(self):
        least = min(cpu_bounds(self.root), key=lambda bound: bound.amount)
        return least.amount, least.source.replace(f"{self.root}/sys/fs/cgroup", "")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def v1(controllers, top="/"):
    """A line of mountinfo."""
    name = controllers.split(",")[0] if controllers != "cpu,cpuacct" else controllers
    return f"32 31 0:29 {top} /sys/fs/cgroup/{name} ro,nosuid,relatime master:9 - cgroup cgroup rw,{controllers}"


# --- version 2 ---


def test_a_limit_less_what_is_used_is_left_and_files_do_not_count_as_used(tree):
    """Pages of files, in use lately or not, and kernel caches are dropped on demand; memory of processes and tmpfs is not."""
    tree.process("0::/", V2)
    stat = "anon 100\nfile 900\nshmem 50\ninactive_file 200\nactive_file 300\nslab_reclaimable 40\nslab_unreclaimable 7"
    tree.group(".", memory__max=2000, memory__current=1000, memory__stat=stat)
    assert tree.memory() == (2000 - (1000 - 200 - 300 - 40), "max of ")


def test_memory_high_is_a_limit_too(tree):
    tree.process("0::/", V2)
    tree.group(".", memory__max=4000, memory__high=3000, memory__current=1000, memory__stat="anon 1000")
    assert tree.memory() == (2000, "high of ")
    tree.group(".", memory__max="max", memory__high=500)
    assert tree.memory() == (0, "high of ")  # it is over it already


def test_every_slice_above_counts_with_all_that_is_used_in_it(tree):
    tree.process("0::/system.slice/system-ai.slice/headrace.service", V2)
    tree.group(
        "system.slice/system-ai.slice/headrace.service", memory__max="max", memory__high="max", memory__current=100
    )
    tree.group("system.slice/system-ai.slice", memory__max=1000, memory__high="max", memory__current=700)
    tree.group("system.slice", memory__max="max", memory__high=5000, memory__current=4000)
    tree.group("system.slice/other.service", memory__max=1, memory__current=1)
    assert tree.memory() == (300, "max of /system.slice/system-ai.slice")
    tree.group("system.slice", memory__current=4900)
    assert tree.memory() == (100, "high of /system.slice")


def test_no_limit_is_none(tree):
    tree.process("0::/a", V2)
    tree.group("a", memory__max="max", memory__high="max", memory__current=1, cpu__max="max 100000")
    assert memory_bounds(tree.root) == cpu_bounds(tree.root) == []


def test_a_quota_anywhere_above_bounds_the_cores(tree):
    tree.process("0::/kubepods.slice/pod1/c1", V2)
    tree.group("kubepods.slice/pod1/c1", cpu__max="max 100000")
    tree.group("kubepods.slice/pod1", cpu__max="250000 100000")
    tree.group("kubepods.slice", cpu__max="780000 100000")
    assert tree.cores() == (2.5, "cpu.max of /kubepods.slice/pod1")
    tree.group("kubepods.slice/pod1/c1", cpu__max="20000 40000")
    assert tree.cores() == (0.5, "cpu.max of /kubepods.slice/pod1/c1")


def test_a_set_of_processors_bounds_the_cores(tree):
    tree.process("0::/a", V2)
    tree.group("a", cpu__max="400000 100000", cpuset__cpus__effective="0-1,8", cpuset__cpus="")
    assert tree.cores() == (3, "cpuset.cpus.effective of /a")


# --- version 1 ---


def test_dockers_own_view_of_version_1(tree):
    """Without a name space of its own a container sees its group at the mount point, and knows it by the name outside."""
    name = "/docker/8f3a"
    tree.process(f"11:cpuset:{name} 4:memory:{name} 3:cpu,cpuacct:{name} 1:name=systemd:{name}",
                 v1("memory", name), v1("cpu,cpuacct", name), v1("cpuset", name))  # fmt: skip
    stat = (
        "cache 500\nrss 100\nactive_file 1\ninactive_file 1\nhierarchical_memory_limit 4096\n"
        "total_cache 500\ntotal_rss 100\ntotal_active_file 200\ntotal_inactive_file 100\ntotal_active_anon 9"
    )
    tree.group("memory", memory__limit_in_bytes=4096, memory__usage_in_bytes=600, memory__stat=stat)
    tree.group("cpu,cpuacct", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    tree.group("cpuset", cpuset__cpus="0-3")
    assert tree.memory() == (4096 - 300, "limit_in_bytes of /memory")
    assert tree.cores() == (1.5, "cpu.cfs_quota_us of /cpu,cpuacct")
    tree.group("cpu,cpuacct", cpu__cfs_quota_us=-1)
    assert tree.cores() == (4, "cpuset.cpus of /cpuset")


def test_every_parent_of_version_1_counts(tree):
    tree.process(
        "4:memory:/kubepods/burstable/pod1 3:cpu,cpuacct:/kubepods/burstable/pod1", v1("memory"), v1("cpu,cpuacct")
    )
    tree.group("memory", memory__limit_in_bytes=NONE_V1, memory__usage_in_bytes=10**9, memory__use_hierarchy=1)
    tree.group("memory/kubepods", memory__limit_in_bytes=1000, memory__usage_in_bytes=900, memory__use_hierarchy=1)
    tree.group("memory/kubepods/burstable", memory__limit_in_bytes=NONE_V1, memory__usage_in_bytes=500)
    tree.group("memory/kubepods/burstable/pod1", memory__limit_in_bytes=800, memory__usage_in_bytes=300)
    assert tree.memory() == (100, "limit_in_bytes of /memory/kubepods")
    tree.group("memory/kubepods", memory__use_hierarchy=0)  # then it does not count its children
    assert tree.memory() == (500, "limit_in_bytes of /memory/kubepods/burstable/pod1")
    tree.group("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    tree.group("cpu,cpuacct/kubepods", cpu__cfs_quota_us=300000, cpu__cfs_period_us=100000)
    tree.group("cpu,cpuacct/kubepods/burstable/pod1", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert tree.cores() == (3.0, "cpu.cfs_quota_us of /cpu,cpuacct/kubepods")


def test_a_limit_above_what_a_container_sees_counts(tree):
    name = "/docker/8f3a"
    tree.process(f"4:memory:{name}", v1("memory", name))
    stat = f"total_active_file 0\nhierarchical_memory_limit {300 * MIB}"
    tree.group("memory", memory__limit_in_bytes=NONE_V1, memory__usage_in_bytes=100 * MIB, memory__stat=stat)
    assert tree.memory() == (200 * MIB, "hierarchical_memory_limit of /memory")


def test_no_limit_of_version_1_is_none(tree):
    tree.process("4:memory:/ 3:cpu:/", v1("memory"), v1("cpu"))
    stat = f"hierarchical_memory_limit {NONE_V1}"
    tree.group("memory", memory__limit_in_bytes=NONE_V1, memory__usage_in_bytes=1, memory__stat=stat)
    tree.group("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert memory_bounds(tree.root) == cpu_bounds(tree.root) == []
    tree.group("memory", memory__limit_in_bytes=-1)
    tree.group("cpu", cpu__cfs_quota_us=100, cpu__cfs_period_us=0)
    assert memory_bounds(tree.root) == cpu_bounds(tree.root) == []


# --- both, neither, and what cannot be read ---


def test_a_hybrid_tree_has_its_limits_in_version_1(tree):
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
    tree.process(
        "4:memory:/user.slice 3:cpu,cpuacct:/ 0::/user.slice/session-2.scope", v1("memory"), v1("cpu,cpuacct"), unified
    )
    tree.group("unified/user.slice/session-2.scope", cgroup__procs=1)
    tree.group("memory/user.slice", memory__limit_in_bytes=500, memory__usage_in_bytes=100)
    tree.group("cpu,cpuacct", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    assert tree.memory() == (400, "limit_in_bytes of /memory/user.slice")
    assert tree.cores()[0] == 2.0


@pytest.mark.parametrize("group", ["/../../outside", "/gone", "/docker/8f3a/nested"])
def test_a_group_that_is_not_to_be_seen_is_the_one_at_the_mount_point(tree, group):
    tree.process(f"0::{group}", V2)
    tree.group(".", memory__max=500, memory__current=100)
    assert tree.memory() == (400, "max of ")


def test_a_mount_point_with_a_space(tree):
    tree.process("0::/", V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/a\040b"))
    tree.group("a b", memory__max=500, memory__current=100)
    assert tree.memory() == (400, "max of /a b")


def test_where_the_mounts_are_not_told_the_usual_places_are_looked_at(tree):
    tree.process("0::/a")
    tree.group("a", memory__max=500, memory__current=100)
    assert tree.memory()[0] == 400
    tree.process("4:memory:/a 3:cpu,cpuacct:/")
    tree.group("memory/a", memory__limit_in_bytes=300, memory__usage_in_bytes=100)
    tree.group("cpu,cpuacct", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    assert tree.memory()[0] == 200 and tree.cores()[0] == 2.0


def test_files_that_are_missing_empty_or_odd_bound_nothing(tree, tmp_path):
    assert memory_bounds(tmp_path / "nowhere") == cpu_bounds(tmp_path / "nowhere") == []
    tree.process("0::/a", V2)
    assert memory_bounds(tree.root) == cpu_bounds(tree.root) == []
    tree.group("a", memory__max="", memory__high="lots", cpu__max="", cpuset__cpus__effective="")
    assert memory_bounds(tree.root) == cpu_bounds(tree.root) == []
    tree.group("a", memory__max=500, memory__stat="odd\nactive_file x")  # and what is used is not told
    assert tree.memory() == (500, "max of /a")


# --- what an engine makes of it ---


def test_the_least_of_machine_and_groups_is_free(tree, monkeypatch):
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    tree.process("0::/", V2)
    tree.group(".", memory__max=5000, memory__current=0)
    assert free_memory(tree.root).amount == 1000
    assert "machine" in free_memory(tree.root).source
    tree.group(".", memory__max=800)
    assert free_memory(tree.root).amount == 800


@pytest.mark.parametrize(("quota", "cores"), [("max", 4), ("250000", 2), ("100000", 1), ("30000", 1), ("900000", 4)])
def test_whole_cores_and_at_least_one(tree, monkeypatch, quota, cores):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    tree.process("0::/", V2)
    tree.group(".", cpu__max=f"{quota} 100000")
    assert usable_cores(tree.root).amount == cores
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {2})
    assert usable_cores(tree.root).amount == 1


def test_this_machine_has_memory_and_cores():
    assert 0 < free_memory().amount <= machine.psutil.virtual_memory().total
    assert 1 <= usable_cores().amount <= machine.os.cpu_count()


# --- limits of the process ---

GIB = 2**30


def limited(monkeypatch, tmp_path, **limits):
    """What is left under these limits, of a process that uses 1 GiB of addresses and 256 MiB of data, on 2 cores."""
    given = {resource.RLIMIT_AS: limits.get("addresses"), resource.RLIMIT_DATA: limits.get("data")}
    none = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (none if given[limit] is None else given[limit], none))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmSize:\t 1048576 kB\nVmData:\t  262144 kB\n")
    return {bound.source: bound.amount for bound in process_bounds(tmp_path)}


def test_a_process_without_limits_is_bounded_by_none(monkeypatch, tmp_path):
    assert limited(monkeypatch, tmp_path) == {}


def test_limits_of_a_process_leave_what_libraries_and_threads_do_not_take(monkeypatch, tmp_path):
    left = limited(monkeypatch, tmp_path, addresses=4 * GIB, data=2 * GIB)
    assert left["ulimit -v of this process"] == 3 * GIB - (640 + 4 * 96) * MIB
    assert left["ulimit -d of this process"] == 2 * GIB - (256 + 384 + 4 * 16) * MIB
    assert limited(monkeypatch, tmp_path, addresses=GIB // 2) == {"ulimit -v of this process": 0}


def test_the_least_bound_is_what_an_engine_plans_with_and_says(monkeypatch, tmp_path):
    limited(monkeypatch, tmp_path, addresses=2 * GIB + GIB // 8)
    bound = free_memory(tmp_path)
    assert (bound.amount, bound.source) == (GIB // 8, "ulimit -v of this process")
    assert free_memory(tmp_path, of_process=False).source != bound.source
