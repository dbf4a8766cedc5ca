"""A cluster of real nodes: what is lost is done again, and everything equals this process's to the bit."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import ClusterError, OptionError, TooFewImagesError  # noqa: E402
from calibration.scan import ray_executor  # noqa: E402
from calibration.scan.base import Arrays, Unit  # noqa: E402
from calibration.scan.executor import LocalExecutor, gather  # noqa: E402
from calibration.scan.ray_executor import RayExecutor  # noqa: E402
from tests.calibration.ray_units import Climb, Deadly, Describe, Failing, Stuck, bench  # noqa: E402

ROOT = Path(__file__).parents[2]
CLIMBS = [Climb(label, steps) for label, steps in ((0, 20), (1, 5), (2, 40), (3, 10), (0, 15))]
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
ONE_CLUSTER = pytest.mark.xdist_group("ray")  # for all, also where tests run side by side


def real(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.ray(ONE_CLUSTER(test))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head that does no work and two nodes of one processor each."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's own are too long for the paths of sockets
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_TMPDIR", folder)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()


def expect_local(units: list[Unit], got: list[Arrays]) -> None:
    for here, there in zip(gather(LocalExecutor(bench()), units), got, strict=True):
        assert here.keys() == there.keys()
        for name, array in here.items():
            assert array.dtype == there[name].dtype
            assert array.shape == there[name].shape
            assert array.tobytes() == there[name].tobytes()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"extra 'ray': pip install 'inference-guard\[ray\]'"):
        RayExecutor(bench())


@pytest.mark.parametrize("option", ["workers", "threads", "tries"])
def test_an_option_below_one_is_refused(option: str) -> None:
    with pytest.raises(OptionError, match=f"{option}: expected at least 1, got 0"):
        RayExecutor(bench(), **{option: 0})


def test_nothing_else_imports_ray() -> None:
    files = [*ROOT.glob("guard/**/*.py"), *ROOT.glob("calibration/**/*.py")]
    pattern = re.compile(r"^\s*(import|from) ray\b|import_module\(.ray\b", re.MULTILINE)
    found = [file.name for file in files if pattern.search(file.read_text())]
    assert found == ["ray_executor.py"]


@real
def test_results_equal_this_process_to_the_bit_in_any_order(nodes: Any) -> None:
    units = [*CLIMBS]
    with RayExecutor(bench(), address=nodes.address) as executor:
        expect_local(units, gather(executor, units))
        expect_local(units[::-1], gather(executor, units[::-1]))
        described = gather(executor, [Describe(number) for number in range(3)])
    model, held = bench().model, bench().held.images
    for facts in described:
        assert (facts["threads"], facts["variable"]) == (1, 1)
        assert not facts["gradients"]
        assert not facts["training"]
        assert np.array_equal(facts["held"], held.numpy())
        assert np.array_equal(facts["logits"], model(held).numpy())
        assert facts["logits"].flags.writeable


@real
def test_a_node_that_dies_at_work_costs_no_result(nodes: Any, tmp_path: Path) -> None:
    units = [Stuck(str(tmp_path), CLIMBS[0]), *CLIMBS]
    got: dict[int, Arrays] = {}
    with RayExecutor(bench(), address=nodes.address) as executor:
        results = executor.run(units)
        place, got[place] = next(results)
        wait_for(tmp_path / "node")
        died, pid = (tmp_path / "node").read_text().split()
        victim = next(node for node in nodes.worker_nodes if node.node_id == died)
        nodes.remove_node(victim, allow_graceful=False)  # SIGKILL
        for place, arrays in results:
            got[place] = arrays
        nodes.add_node(num_cpus=1)
        assert sorted(got) == list(range(len(units)))
        expect_local([CLIMBS[0], *CLIMBS], [got[place] for place in range(len(units))])
        until(lambda: not Path(f"/proc/{pid}").exists())
        expect_local(CLIMBS, gather(executor, CLIMBS))


@real
def test_a_worker_that_is_killed_twice_is_replaced(nodes: Any, tmp_path: Path) -> None:
    with RayExecutor(bench(), address=nodes.address, tries=3) as executor:
        got = gather(executor, [Deadly(str(tmp_path), 2, CLIMBS[0]), *CLIMBS])
    expect_local([CLIMBS[0], *CLIMBS], got)
    assert len(list(tmp_path.iterdir())) == 2


@real
def test_too_many_deaths_are_an_error_that_names_the_unit_and_the_reason(nodes: Any, tmp_path: Path) -> None:
    with RayExecutor(bench(), address=nodes.address, tries=2) as executor:
        with pytest.raises(ClusterError, match=r"unit deadly-9-climb-0-20: .* got 2 lost .*ActorDiedError"):
            gather(executor, [Deadly(str(tmp_path), 9, CLIMBS[0])])
        assert len(list(tmp_path.iterdir())) == 2
        expect_local(CLIMBS[:1], gather(executor, CLIMBS[:1]))


@real
def test_an_exception_of_a_units_own_arrives_as_it_is_and_is_not_tried_again(
    nodes: Any, tmp_path: Path
) -> None:
    with RayExecutor(bench(), address=nodes.address) as executor:
        with pytest.raises(TooFewImagesError) as caught:
            gather(executor, [Failing(str(tmp_path))])
        expect_local(CLIMBS[:1], gather(executor, CLIMBS[:1]))
    assert str(caught.value) == "expected 9 images, got 2"
    assert (caught.value.needed, caught.value.got) == (9, 2)
    assert "in unit failing, on a worker" in caught.value.__notes__[0]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@real
def test_workers_with_another_torch_are_refused(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "_torch_version", lambda: "1.0")
    with RayExecutor(bench(), address=nodes.address) as executor:
        expected = rf"expected torch 1\.0 as here, got {torch.__version__.split('+')[0]}"
        with pytest.raises(ClusterError, match=expected):
            gather(executor, CLIMBS)


@real
def test_a_cluster_without_room_is_an_error_and_not_a_wait_for_ever(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_LAP_S", 0.1)
    expected = "got none; each needs 99 processors, the cluster has 2"
    with (
        RayExecutor(bench(), address=nodes.address, threads=99, start_timeout_s=1.0) as executor,
        pytest.raises(ClusterError, match=expected),
    ):
        gather(executor, CLIMBS)


@real
def test_leaving_a_cluster_does_not_stop_it_and_frees_its_processors(nodes: Any) -> None:
    import ray

    with RayExecutor(bench(), address=nodes.address) as executor:
        gather(executor, CLIMBS[:2])
    assert not ray.is_initialized()
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        with RayExecutor(bench(), address=nodes.address) as executor:
            gather(executor, CLIMBS[:2])
        assert ray.is_initialized()
        assert ray.cluster_resources()["CPU"] == 2
        until(lambda: ray.available_resources().get("CPU") == 2)
    finally:
        ray.shutdown()


SCRIPT = """
import sys
from calibration.scan.ray_executor import RayExecutor  # noqa: E402
from tests.calibration.ray_units import Climb, Stuck, bench  # noqa: E402

with RayExecutor(bench(), workers=2) as executor:
    print(executor._folder, flush=True)
    for place, arrays in executor.run([Climb(0), Stuck(sys.argv[1], Climb(1))]):
        print("place", place, flush=True)
"""


@real
def test_ctrl_c_ends_a_local_cluster_and_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        assert process.stdout.readline() == "place 0\n"
        wait_for(tmp_path / "node")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.startswith("Traceback")
    assert not Path(folder).exists()
    _, pid = (tmp_path / "node").read_text().split()
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: processes_of(folder) == [])


@real
@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:"])
def test_an_address_where_no_cluster_is_is_an_error(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(OptionError, match=f"address '{address}': expected a Ray cluster"):
        RayExecutor(bench(), address=address).start()


def processes_of(folder: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in path.read_text():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def wait_for(path: Path) -> None:
    until(path.exists)


def until(holds: Callable[[], bool]) -> None:
    """Other processes are waited for; they tell no one when they are done."""
    deadline = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
