"""How much memory there is: read from files as the kernel writes them, on a machine and in containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.control.memory import BYTES_PER_FILE_BYTE, available_bytes, check_memory, needed_bytes
from guard.errors import CandidateError

MIB = 2**20
MEMINFO = "MemTotal:       24689152 kB\nMemFree:         1048576 kB\nMemAvailable:   20971520 kB\n"


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def put(root: Path, folder: str, **figures: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in figures.items():
        (root / folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pods/guard\n")
    return tmp_path


def test_on_a_machine_it_is_what_the_kernel_calls_available(machine: Path) -> None:
    assert available_bytes(machine) == 20971520 * 1024


def test_a_group_leaves_its_limit_less_what_is_taken_and_no_cache(machine: Path) -> None:
    put(
        machine,
        "sys/fs/cgroup/pods/guard",
        memory__max=f"{512 * MIB}",
        memory__current=f"{500 * MIB}",
        memory__stat=f"anon {300 * MIB}\ninactive_file {200 * MIB}",
    )
    assert available_bytes(machine) == 212 * MIB


def test_a_group_around_it_counts_too_and_one_without_a_limit_does_not(machine: Path) -> None:
    stat = {"memory__current": f"{100 * MIB}", "memory__stat": "anon 0"}
    put(machine, "sys/fs/cgroup/pods/guard", memory__max="max", **stat)
    put(machine, "sys/fs/cgroup/pods", memory__max=f"{150 * MIB}", **stat)
    assert available_bytes(machine) == 50 * MIB


def test_in_a_container_the_group_is_the_outermost_one(machine: Path) -> None:
    put(
        machine,
        "sys/fs/cgroup",
        memory__max=f"{64 * MIB}",
        memory__current=f"{80 * MIB}",
        memory__stat="inactive_file 0",
    )
    assert available_bytes(machine) == 0


def test_groups_of_the_first_version_are_read_too(machine: Path) -> None:
    write(machine, proc__self__cgroup="5:cpu:/x\n3:memory,misc:/guard\n")
    put(
        machine,
        "sys/fs/cgroup/memory/guard",
        memory__limit_in_bytes=f"{100 * MIB}",
        memory__usage_in_bytes=f"{40 * MIB}",
        memory__stat=f"cache 1\ntotal_inactive_file {10 * MIB}",
    )
    assert available_bytes(machine) == 70 * MIB


def test_where_the_system_does_not_say_it_is_not_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_here_it_is_something() -> None:
    available = available_bytes()
    assert available is None or available > MIB


def test_what_is_needed_grows_with_the_files(tmp_path: Path) -> None:
    write(tmp_path, **{"model.onnx": "x" * 1000, "weights__part": "y" * 234})
    assert needed_bytes(tmp_path) == BYTES_PER_FILE_BYTE * 1234


def test_what_does_not_fit_is_refused_to_the_byte(tmp_path: Path) -> None:
    write(tmp_path, **{"model.onnx": "x" * MIB})
    check_memory(tmp_path, None)
    check_memory(tmp_path, BYTES_PER_FILE_BYTE * MIB)
    with pytest.raises(
        CandidateError, match=r"needs about 6 MiB of memory .*, 6 MiB are free; give the guard"
    ):
        check_memory(tmp_path, BYTES_PER_FILE_BYTE * MIB - 1)
