"""The slot: every request sees one version to its end, and every version is closed exactly once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from guard.errors import ShuttingDownError
from guard.runtime.slot import Closable, ModelSlot

PATIENCE_S = 60.0
NO_TIME_S = 0.01


@dataclass(eq=False)
class FakeModel:
    """Remembers when it was closed, in a diary that it shares."""

    name: str
    diary: list[str] = field(default_factory=list)
    may_close: threading.Event | None = None

    def close(self) -> None:
        if self.may_close is not None:
            assert self.may_close.wait(PATIENCE_S)
        self.diary.append(f"{self.name} closed")


class Unclosable:
    """Fails to close."""

    def close(self) -> None:
        raise OSError("the device is stuck")


async def others_had_their_turn() -> None:
    """Let every task run until it waits for something that this test does."""
    for _ in range(5):
        await asyncio.sleep(0)


async def closed(slot: ModelSlot[FakeModel], model: FakeModel) -> None:
    """Wait until the slot holds the model no longer."""
    async with asyncio.timeout(PATIENCE_S):
        while model in slot.held:
            await others_had_their_turn()


async def test_a_lease_gives_the_current_model() -> None:
    model = FakeModel("v1")
    slot = ModelSlot(model)

    with slot.lease() as leased:
        assert leased is model

    assert (slot.current, model.diary) == (model, [])


async def test_a_request_finishes_on_the_version_it_began_with() -> None:
    diary: list[str] = []
    old, new = FakeModel("v1", diary), FakeModel("v2", diary)
    slot = ModelSlot(old)
    with slot.lease() as began_with:
        assert slot.swap(new, drain_timeout_s=PATIENCE_S) is old
        with slot.lease() as later:
            assert (began_with, later) == (old, new)
        await others_had_their_turn()
        assert slot.held == (old, new)
        diary.append("the request ended")

    await slot.drained()
    assert diary == ["the request ended", "v1 closed"]
    assert (slot.current, slot.held) == (new, (new,))


async def test_the_old_model_is_closed_once_after_its_last_lease() -> None:
    old, new = FakeModel("v1"), FakeModel("v2")
    slot = ModelSlot(old)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(slot.lease())
        second.enter_context(slot.lease())
        slot.swap(new, drain_timeout_s=PATIENCE_S)
        await others_had_their_turn()
        first.close()
        await others_had_their_turn()
        assert old.diary == []

    await slot.drained()
    await slot.close(drain_timeout_s=PATIENCE_S)

    assert (old.diary, new.diary) == (["v1 closed"], ["v2 closed"])


async def test_an_idle_model_is_replaced_at_once() -> None:
    old = FakeModel("v1")
    slot = ModelSlot(old)

    assert slot.swap(FakeModel("v2"), drain_timeout_s=PATIENCE_S) is old

    await slot.drained()
    assert old.diary == ["v1 closed"]


async def test_a_request_that_outlasts_the_drain_timeout_does_not_keep_the_old_model_open() -> None:
    old, new = FakeModel("v1"), FakeModel("v2")
    slot = ModelSlot(old)

    with slot.lease():
        slot.swap(new, drain_timeout_s=NO_TIME_S)
        await slot.drained()
        assert old.diary == ["v1 closed"]

    assert slot.current is new
    await slot.close(drain_timeout_s=PATIENCE_S)
    assert (old.diary, new.diary) == (["v1 closed"], ["v2 closed"])


async def test_two_swaps_in_a_row_close_both_old_models_and_keep_the_last() -> None:
    models = [FakeModel(f"v{number}") for number in (1, 2, 3)]
    slot = ModelSlot(models[0])
    with slot.lease():
        slot.swap(models[1], drain_timeout_s=PATIENCE_S)
        with slot.lease():
            slot.swap(models[2], drain_timeout_s=PATIENCE_S)
            await others_had_their_turn()
            assert [model.diary for model in models] == [[], [], []]
        await closed(slot, models[1])
        assert [model.diary for model in models] == [[], ["v2 closed"], []]

    await slot.drained()
    assert [model.diary for model in models] == [["v1 closed"], ["v2 closed"], []]
    assert slot.current is models[2]


async def test_closing_waits_for_what_was_swapped_out_too() -> None:
    old, new = FakeModel("v1"), FakeModel("v2")
    slot = ModelSlot(old)
    with slot.lease():
        slot.swap(new, drain_timeout_s=PATIENCE_S)
        closing = asyncio.create_task(slot.close(drain_timeout_s=PATIENCE_S))
        await closed(slot, new)
        assert (closing.done(), old.diary, new.diary) == (False, [], ["v2 closed"])

    await closing

    assert (old.diary, new.diary) == (["v1 closed"], ["v2 closed"])


async def test_a_model_that_takes_long_to_close_does_not_hold_up_the_event_loop() -> None:
    old = FakeModel("v1", may_close=threading.Event())
    slot = ModelSlot(old)
    slot.swap(FakeModel("v2"), drain_timeout_s=PATIENCE_S)
    await others_had_their_turn()
    with slot.lease() as leased:
        assert (leased.name, old in slot.held) == ("v2", True)
    old.may_close.set()

    await slot.drained()
    assert old.diary == ["v1 closed"]


async def test_a_model_that_cannot_be_closed_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    slot = ModelSlot[Closable](Unclosable())

    slot.swap(FakeModel("v2"), drain_timeout_s=PATIENCE_S)
    await slot.drained()

    [record] = caplog.records
    assert record.getMessage() == "a model that was swapped out could not be closed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the device is stuck"
    assert [model.name for model in slot.held] == ["v2"]


async def test_a_closed_slot_leases_nothing_and_swaps_nothing() -> None:
    model = FakeModel("v1")
    slot = ModelSlot(model)

    await slot.close(drain_timeout_s=PATIENCE_S)
    await slot.close(drain_timeout_s=PATIENCE_S)

    assert (slot.current, model.diary) == (None, ["v1 closed"])
    with pytest.raises(ShuttingDownError) as no_lease, slot.lease():
        pass
    assert str(no_lease.value) == "the model is being unloaded; retry on another replica"
    with pytest.raises(ShuttingDownError) as no_swap:
        slot.swap(FakeModel("v2"), drain_timeout_s=PATIENCE_S)
    assert str(no_swap.value) == "the model is being unloaded; load it again instead of swapping it"


async def test_closing_waits_for_the_requests_that_hold_a_lease() -> None:
    model = FakeModel("v1")
    slot = ModelSlot(model)
    with slot.lease():
        closing = asyncio.create_task(slot.close(drain_timeout_s=PATIENCE_S))
        await others_had_their_turn()
        assert (slot.current, closing.done(), model.diary) == (None, False, [])

    await closing
    assert model.diary == ["v1 closed"]


async def test_a_request_that_fails_returns_its_lease() -> None:
    model = FakeModel("v1")
    slot = ModelSlot(model)

    with pytest.raises(KeyError), slot.lease():
        raise KeyError("the request failed")

    await slot.close(drain_timeout_s=PATIENCE_S)
    assert model.diary == ["v1 closed"]


async def test_a_model_cannot_be_swapped_for_itself() -> None:
    model = FakeModel("v1")
    slot = ModelSlot(model)

    with pytest.raises(ValueError, match="expected a model that this slot does not hold"):
        slot.swap(model, drain_timeout_s=PATIENCE_S)

    assert (slot.current, model.diary) == (model, [])


async def test_a_candidate_is_leased_by_name_beside_the_current_model() -> None:
    current, candidate = FakeModel("v1"), FakeModel("v2")
    slot = ModelSlot(current)
    slot.admit(candidate)

    with slot.lease() as one, slot.lease(candidate=True) as other:
        assert (one, other) == (current, candidate)

    assert (slot.current, slot.candidate, slot.held) == (current, candidate, (current, candidate))


async def test_a_swap_to_the_candidate_keeps_its_leases_and_closes_the_old_model() -> None:
    diary: list[str] = []
    current, candidate = FakeModel("v1", diary), FakeModel("v2", diary)
    slot = ModelSlot(current)
    slot.admit(candidate)
    with slot.lease(candidate=True):
        assert slot.swap(candidate, drain_timeout_s=PATIENCE_S) is current
        await slot.drained()
        assert diary == ["v1 closed"]

    assert (slot.current, slot.candidate, slot.held) == (candidate, None, (candidate,))
    await slot.close(drain_timeout_s=PATIENCE_S)
    assert diary == ["v1 closed", "v2 closed"]


async def test_a_dismissed_candidate_is_closed_after_its_last_lease() -> None:
    diary: list[str] = []
    slot = ModelSlot(FakeModel("v1", diary))
    slot.admit(FakeModel("v2", diary))
    with slot.lease(candidate=True):
        slot.dismiss(drain_timeout_s=PATIENCE_S)
        with pytest.raises(ShuttingDownError), slot.lease(candidate=True):
            pass
        await others_had_their_turn()
        assert diary == []

    await slot.drained()
    assert (diary, slot.candidate, len(slot.held)) == (["v2 closed"], None, 1)
    slot.dismiss(drain_timeout_s=PATIENCE_S)  # nobody there: nothing to do


async def test_a_slot_has_one_candidate_and_closes_it_with_the_rest() -> None:
    diary: list[str] = []
    current = FakeModel("v1", diary)
    slot = ModelSlot(current)
    with pytest.raises(ValueError, match="dismiss it first"):
        slot.admit(current)
    slot.admit(FakeModel("v2", diary))
    with pytest.raises(ValueError, match="dismiss it first"):
        slot.admit(FakeModel("v3", diary))
    await slot.close(drain_timeout_s=PATIENCE_S)

    assert sorted(diary) == ["v1 closed", "v2 closed"]
    with pytest.raises(ShuttingDownError, match="being unloaded"):
        slot.admit(FakeModel("v3"))
