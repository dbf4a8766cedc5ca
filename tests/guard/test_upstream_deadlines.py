"""Whose time was up: the model server's, or the check's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from fake_classifier import GatedClassifier
from prometheus_client import CollectorRegistry

from guard.dataplane.intake import Intake
from guard.dataplane.relay import Relay
from guard.dataplane.served import ServedModel
from guard.detection.threshold import Policy
from guard.errors import DeadlineError, UpstreamDeadlineError
from guard.messages import InferRequest, ModelDescription, Original, Relayed, Tensor
from guard.metrics import Metrics
from guard.rpc.status import metadata_of, status_of
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.slot import ModelSlot
from tests.guard.upstream_house import CLEAN, tiny_repository
from tests.serving import PATIENCE_S, with_device

REQUEST = InferRequest("tiny", (Tensor("images", "FP32", CLEAN[:2]),), original=Original(b""))
POLICIES = pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.MONITOR])


class Server:
    """A model server that answers at once, or never."""

    ready = True
    why = ""
    held = False
    versions = ("1",)
    datatype = ""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.cancelled = False

    async def until_ready(self, model: LoadedModel, limit_s: float) -> bool:
        return True

    def under_way(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def statistics(self) -> dict[str, bytes]:
        return {}

    async def infer(self, request: InferRequest, model: LoadedModel, limit_s: float) -> Relayed:
        if not self.answers:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        return Relayed(b"")

    def describe(self, name: str) -> ModelDescription:
        raise NotImplementedError


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[GatedClassifier, LoadedModel]]:
    model = load_model("tiny", tiny_repository(tmp_path) / "tiny" / "1", RuntimeOptions("cpu", threads=1))
    device = GatedClassifier(model.classifier)
    held = with_device(model, device)
    yield device, held
    device.let_all_go()
    held.close()


async def ask(model: LoadedModel, server: Server, policy: Policy, limit_s: float = 0.05) -> object:
    served = ServedModel(ModelSlot(model), policy, "refuse", upstream=server)
    relay = Relay(Metrics(CollectorRegistry()), 64, (), Intake(max_rows=64))
    return await relay.infer(REQUEST, served, server, limit_s)


@POLICIES
async def test_a_server_that_takes_too_long_is_named_and_not_waited_for_any_more(
    device: tuple[GatedClassifier, LoadedModel], policy: Policy
) -> None:
    server = Server(answers=False)
    device[0].let_all_go()

    with pytest.raises(UpstreamDeadlineError, match="the model server of model 'tiny' took longer") as late:
        await ask(device[1], server, policy)
    await asyncio.sleep(0)

    assert server.cancelled
    assert status_of(late.value)[0].name == "DEADLINE_EXCEEDED"
    assert metadata_of(late.value) == (("guard-upstream", "true"),)


async def test_a_check_that_takes_too_long_is_the_guards_own(
    device: tuple[GatedClassifier, LoadedModel],
) -> None:
    with pytest.raises(DeadlineError, match="the check of model 'tiny' took longer") as late:
        await ask(device[1], Server(answers=True), Policy.ENFORCE)

    assert metadata_of(late.value) == ()
    assert device[1].scheduler.rows == 0


async def test_under_monitor_a_check_takes_the_time_that_it_takes(
    device: tuple[GatedClassifier, LoadedModel],
) -> None:
    answer = await ask(device[1], Server(answers=True), Policy.MONITOR, PATIENCE_S)

    assert answer.parameters == {"guard_verdict": "pending"}  # type: ignore[attr-defined]
    assert np.shape(CLEAN[:2])[0] == device[1].scheduler.rows
