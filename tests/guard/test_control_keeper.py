"""Swap and rollback: what serves afterwards, what is told of it, and what is left where it fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_edits import replace_model
from control_house import PATIENCE_S, Gate, House, keeping, load

from guard.control.candidate import manifest_digest
from guard.errors import BusyError, CandidateError, ShuttingDownError, UnknownModelError
from guard.runtime.loader import LoadedModel
from tests import tiny_models
from tests.artifacts import write_tiny_artifact


@pytest.fixture(autouse=True)
def no_device_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("device-")] == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 to 3, of different boundaries."""
    for bits in (0.1, 0.2, 0.3):
        write_tiny_artifact(tmp_path / "models", boundary_bits=bits, probed=bits > 0.1)
    return tmp_path / "models"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Version 1 alone."""
    write_tiny_artifact(tmp_path / "models")
    return tmp_path / "models"


async def test_the_highest_version_serves_and_the_status_says_so(repository: Path) -> None:
    async with keeping(repository) as house:
        [status] = await house.keeper.status()

    current = status.current
    assert current is not None
    assert (status.name, status.policy, status.available) == ("tiny", "flag", ("1", "2", "3"))
    assert (current.version, current.boundary_bits, current.certified_frr) == ("3", 0.3, 0.01)
    assert current.digest == manifest_digest(repository / "tiny" / "3")
    assert (status.previous, status.canary, status.failures) == ((), None, ())


async def test_a_swap_serves_another_version_and_tells_everybody(repository: Path) -> None:
    digests = {version: manifest_digest(repository / "tiny" / version) for version in "123"}
    async with keeping(repository) as house:
        report = await house.keeper.swap("tiny", "1", digest=digests["1"], actor="ops")

        [status] = await house.keeper.status("tiny")
        assert status.current == report.new
        assert status.previous == ("3",)
        assert house.counted("guard_swaps_total", outcome="swapped") == 1
        assert house.counted("guard_boundary_bits") == 0.1
        assert house.counted("guard_candidate_load_seconds_count") == 1
        assert house.counted("guard_last_swap_timestamp_seconds") == pytest.approx(
            report.new.loaded_at, abs=PATIENCE_S
        )
        [info] = [
            s.labels for m in house.registry.collect() for s in m.samples if s.name == "guard_model_info"
        ]
        assert (info["version"], info["digest"]) == ("1", digests["1"])

    assert (report.model, report.old.digest, report.new.digest, report.changed, report.note) == (
        *("tiny", digests["3"], digests["1"], True, ""),
    )
    assert report.seconds > 0
    kind, fields = house.events[-1]
    assert fields.pop("seconds") == round(report.seconds, 3)
    assert (kind, fields) == (
        "swapped",
        {
            "model": "tiny",
            "actor": "ops",
            "old_version": "3",
            "old_digest": digests["3"],
            "new_version": "1",
            "new_digest": digests["1"],
        },
    )


async def test_the_queue_that_is_watched_is_that_of_the_new_version(repository: Path) -> None:
    async with keeping(repository) as house:
        await house.keeper.swap("tiny", "1")
        scheduler = house.tiny.served.slot.current.scheduler  # type: ignore[union-attr]
        scheduler._line._rows = 7  # what only this scheduler has
        assert house.counted("guard_queue_rows") == 7
        scheduler._line._rows = 0


async def test_without_a_version_the_highest_serves_and_twice_changes_nothing(first: Path) -> None:
    async with keeping(first) as house:
        write_tiny_artifact(first, boundary_bits=0.9)
        reports = [await house.keeper.swap("tiny") for _ in range(2)]

        assert [(report.old.version, report.new.version, report.changed) for report in reports] == [
            ("1", "2", True),
            ("2", "2", False),
        ]
        assert house.counted("guard_swaps_total", outcome="swapped") == 1


async def test_the_old_version_is_closed_when_its_last_request_is_done(repository: Path) -> None:
    async with keeping(repository) as house:
        slot = house.tiny.served.slot
        with slot.lease() as leased:
            await house.keeper.swap("tiny", "1")
            assert [model.version for model in slot.held] == ["3", "1"]
            images = leased.classifier._random_images(1)
            assert leased.classifier.logits(images).shape == (1, 10)
        await slot.drained()
        with pytest.raises(RuntimeError, match="closed"):
            leased.classifier.logits(images)


async def test_rollbacks_go_back_one_by_one_and_bring_the_old_hash_back(repository: Path) -> None:
    async with keeping(repository) as house:
        [before] = await house.keeper.status("tiny")
        await house.keeper.swap("tiny", "1")
        await house.keeper.swap("tiny", "2")

        reports = [await house.keeper.rollback("tiny", actor="ops") for _ in range(2)]

        [status] = await house.keeper.status("tiny")
        assert [report.new.version for report in reports] == ["1", "3"]
        assert before.current is not None
        assert reports[-1].new.digest == before.current.digest
        assert status.previous == ()
        with pytest.raises(CandidateError, match=r"served before '3'; swap to one of \['1', '2'\]$"):
            await house.keeper.rollback("tiny")
        assert house.counted("guard_swaps_total", outcome="rolled_back") == 2
    assert house.kinds().count("rolled_back") == 2


async def test_a_version_that_was_changed_since_it_served_is_not_rolled_back_to(repository: Path) -> None:
    async with keeping(repository) as house:
        await house.keeper.swap("tiny", "2")
        replace_model(repository / "tiny" / "3", tiny_models.linear_classifier(seed=5))

        with pytest.raises(
            CandidateError, match=r"version '3' .* has the digest .* expected .* '2' serves on"
        ):
            await house.keeper.rollback("tiny")

        assert (house.serving, (await house.keeper.status("tiny"))[0].previous) == ("2", ("3",))


async def test_a_model_that_is_not_served_is_not_known(first: Path) -> None:
    async with keeping(first) as house:
        for refused in (house.keeper.swap("nope"), house.keeper.rollback("nope")):
            with pytest.raises(UnknownModelError, match=r"'nope' is not served here; loaded: \['tiny'\]"):
                await refused
        with pytest.raises(UnknownModelError):
            await house.keeper.status("nope")


@pytest.mark.parametrize("version", ["9", "01", "../tiny/2", "latest", ".."])
async def test_a_version_that_is_not_there_is_refused(repository: Path, version: str) -> None:
    async with keeping(repository) as house:
        with pytest.raises(CandidateError, match=r"not in the repository, expected one of \['1', '2', '3'\]"):
            await house.keeper.swap("tiny", version)
        assert house.serving == "3"


async def test_another_digest_than_the_one_asked_for_is_refused_unrun(repository: Path) -> None:
    loaded: list[LoadedModel] = []

    def load_and_note(*arguments: Any) -> LoadedModel:
        loaded.append(load(*arguments))
        return loaded[-1]

    async with keeping(repository, load=load_and_note) as house:
        with pytest.raises(
            CandidateError, match=rf"expected {'0' * 64}; it is not the artifact that is meant"
        ):
            await house.keeper.swap("tiny", "1", digest="0" * 64)
        assert (house.serving, len(loaded)) == ("3", 1)


async def test_of_two_operations_at_once_the_second_is_told_to_wait(repository: Path) -> None:
    gate = Gate()
    gate.open.set()
    async with keeping(repository, load=gate.load) as house:
        gate.open.clear()
        swap = asyncio.create_task(house.keeper.swap("tiny", "1"))
        await asyncio.sleep(0)
        for late in (house.keeper.swap("tiny", "2"), house.keeper.rollback("tiny")):
            with pytest.raises(BusyError, match="another operation on model 'tiny' is under way"):
                await late
        gate.open.set()
        assert (await swap).new.version == "1"
        assert (await house.keeper.swap("tiny", "2")).new.version == "2"


async def test_whoever_asked_may_leave_and_the_swap_is_made_all_the_same(repository: Path) -> None:
    gate = Gate()
    gate.open.set()
    async with keeping(repository, load=gate.load) as house:
        gate.open.clear(), gate.reached.clear()
        swap = asyncio.create_task(house.keeper.swap("tiny", "1"))
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
        assert house.serving == "3"
        gate.open.set()
        await house.tiny.finish()

        assert (house.serving, house.kinds()[-1]) == ("1", "swapped")


async def test_a_failure_that_nobody_waits_for_is_told_all_the_same(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    gate.open.set()
    async with keeping(repository, load=gate.load) as house:
        (repository / "tiny" / "1" / "model.onnx").write_bytes(b"short")
        gate.open.clear(), gate.reached.clear()
        swap = asyncio.create_task(house.keeper.swap("tiny", "1"))
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)
        swap.cancel()
        gate.open.set()
        await house.tiny.finish()
        await asyncio.sleep(0)

    assert house.kinds()[-1] == "candidate_failed"
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_a_swap_during_shutdown_leaves_nothing_open(repository: Path) -> None:
    gate = Gate()
    gate.open.set()
    async with keeping(repository, load=gate.load) as house:
        gate.open.clear(), gate.reached.clear()
        swap = asyncio.create_task(house.keeper.swap("tiny", "1"))
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)
        house.keeper.begin_shutdown()
        gate.open.set()
        with pytest.raises(ShuttingDownError, match="model 'tiny' is being unloaded; ask another replica"):
            await swap
        assert house.serving == "3"
        with pytest.raises(ShuttingDownError):
            await house.keeper.swap("tiny", "2")

    assert (house.serving, house.kinds()) == ("", ["loaded"])


async def test_who_listens_badly_breaks_nothing(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    def listen(kind: str, fields: object) -> None:
        raise OSError(f"no room for {kind}")

    async with keeping(repository, on_event=listen) as house:
        assert (await house.keeper.swap("tiny", "1")).changed
        assert house.serving == "1"

    told = [record.getMessage() for record in caplog.records if record.name == "guard.control.announcer"]
    assert told == [
        "an event of kind 'loaded' could not be told",
        "an event of kind 'swapped' could not be told",
    ]


async def versions_after(house: House, *swaps: str) -> tuple[str, ...]:
    for version in swaps:
        await house.keeper.swap("tiny", version)
    return (await house.keeper.status("tiny"))[0].previous


async def test_what_served_before_is_listed_once_the_latest_first(repository: Path) -> None:
    async with keeping(repository) as house:
        assert await versions_after(house, "1", "2", "3", "1") == ("3", "2")
        assert await versions_after(house, "2") == ("1", "3")
