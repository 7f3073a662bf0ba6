"""A container's share of the machine, read from folders laid out as the kernel does."""

import os

import pytest

from benchmarks.base import limits
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.trials import processes

CORES = 64
GIB = 2**30


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)), raising=False)


def machine(folder, groups, files, total=256 * GIB):
    """A root with /proc/self/cgroup, /proc/meminfo and files under /sys/fs/cgroup."""
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    texts |= {"proc/self/cgroup": groups, "proc/meminfo": f"MemTotal: {total // 1024} kB\nHugePages_Total: 0\n"}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


CASES = {
    "no limits": ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, CORES, 256 * GIB),
    "version 2": ("0::/job\n", {"job/cpu.max": "250000 100000", "job/memory.max": str(4 * GIB)}, 2, 4 * GIB),
    "above": ("0::/pod/job\n", {"pod/job/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3, 256 * GIB),
    "host's names": ("0::/docker/0123\n", {"cpu.max": "150000 100000", "memory.max": str(GIB)}, 1, GIB),
    "less than a core": ("0::/\n", {"cpu.max": "20000 100000"}, 1, 256 * GIB),
    "soft limit": ("0::/\n", {"memory.high": str(2 * GIB), "memory.max": str(3 * GIB)}, CORES, 2 * GIB),
    "version 1": (
        "5:cpu,cpuacct:/job\n4:memory:/job\n",
        {
            "cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "memory/job/memory.limit_in_bytes": str(8 * GIB),
        },
        4,
        8 * GIB,
    ),
    "version 1 without limits": (
        "1:cpu:/\n2:memory:/\n",
        {
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
        CORES,
        256 * GIB,
    ),
    "both versions": (
        "2:memory:/a\n0::/\n",
        {"memory/a/memory.limit_in_bytes": str(5 * GIB), "unified/cpu.max": "700000 100000"},
        7,
        5 * GIB,
    ),
    "nonsense": ("what\n0:\n", {"cpu.max": "a b", "memory.max": "-3"}, CORES, 256 * GIB),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_limit_holds(name, tmp_path):
    groups, files, cores, memory = CASES[name]
    root = machine(tmp_path, groups, files)
    assert limits.usable_cores(root) == cores
    assert limits.memory_limit(root) == memory


def test_without_linux_there_is_no_limit_but_the_cores(tmp_path):
    assert limits.usable_cores(tmp_path) == CORES
    assert limits.memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "memory", "jobs"), [(8, None, 8), (8, 3 * GIB, 3), (2, 64 * GIB, 2), (4, GIB // 2, 1)]
)
def test_trials_at_a_time_fit_the_container(cores, memory, jobs, monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    monkeypatch.setattr(processes, "memory_limit", lambda: memory)
    assert processes.default_jobs(build_suite(*read_suite("quick"))) == jobs
