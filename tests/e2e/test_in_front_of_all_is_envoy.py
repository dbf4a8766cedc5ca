"""Clients → Envoy → Triton and two guards, all real: what is checked, and what goes on when guards die."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.rpc.pb import open_inference_pb2 as pb
from tests.e2e.envoy_house import GUARDED, GUARDS, UNGUARDED, House, house_in, stub_of
from tests.guard.upstream_house import CLEAN, SUSPICIOUS, values
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, infer_request

pytestmark = pytest.mark.peer

CALLS = Path(__file__).with_name("triton_upstream_calls.py")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house_in(tmp_path_factory.mktemp("house")) as house:
        house.start_guards(*GUARDS)
        becomes(lambda: verdict(house, GUARDED), "accept")
        yield house


def called(house: House, address: str, model: str) -> dict[str, Any]:
    """Run Triton's client beside this process and return what it saw."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    argv = [str(house.triton.python), str(CALLS), address, model, str(house.triton.folder / "images.npz")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def verdict(house: House, model: str, images: np.ndarray = CLEAN[:1]) -> str | grpc.StatusCode:
    """Return the verdict that an answer through Envoy carries, ``"none"`` without one, or the status."""
    with grpc.insecure_channel(house.envoy.address) as channel:
        try:
            answer = stub_of(channel).ModelInfer(infer_request(images, model=model), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return str(values(answer.parameters).get("guard_verdict", "none"))


def becomes(ask: Callable[[], object], expected: object) -> None:
    """Ask until the answer is as expected; it has to be so in the end."""
    deadline = time.monotonic() + PATIENCE_S
    while (last := ask()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert last == expected


def test_an_unguarded_model_is_answered_as_if_nothing_stood_in_front(house: House) -> None:
    through = called(house, house.envoy.address, UNGUARDED)

    assert through == called(house, house.triton.address, UNGUARDED)
    assert through["suspicious"]["verdict"] == ""
    np.testing.assert_allclose(through["suspicious"]["logits"], linear_logits(SUSPICIOUS[:1]), atol=1e-4)


def test_a_guarded_model_is_checked_and_answered_as_by_triton(house: House) -> None:
    through = called(house, house.envoy.address, GUARDED)
    direct = called(house, house.triton.address, GUARDED)

    assert through["ready"] == [True, True, True]
    assert (through["metadata"], through["config"]) == (direct["metadata"], direct["config"])
    for answer, same in zip(
        [through["clean"], *through["one by one"]], [direct["clean"], *direct["one by one"]], strict=True
    ):
        assert answer == same | {"verdict": "accept"}
    assert "logits" in direct["suspicious"]
    assert through["suspicious"]["status"] == "StatusCode.PERMISSION_DENIED"
    assert "row" in through["suspicious"]["words"]
    assert through["too many"] == direct["too many"]  # Triton's own words


def test_a_model_that_nobody_named_is_the_guards_to_refuse(house: House) -> None:
    assert verdict(house, "nobody") is grpc.StatusCode.NOT_FOUND


def test_each_message_of_a_stream_is_checked_or_passed_by_a_guard(house: House) -> None:
    asked = [(GUARDED, CLEAN[:1]), (GUARDED, SUSPICIOUS[:1]), (UNGUARDED, SUSPICIOUS[:1])]
    messages = [infer_request(images, model=model, id=str(n)) for n, (model, images) in enumerate(asked)]
    with grpc.insecure_channel(house.envoy.address) as channel:
        answers = list(stub_of(channel).ModelStreamInfer(iter(messages), timeout=PATIENCE_S))

    verdicts = [values(answer.infer_response.parameters).get("guard_verdict") for answer in answers]
    assert verdicts == ["accept", "reject", "unguarded"]
    assert [len(answer.infer_response.raw_output_contents) for answer in answers] == [1, 0, 1]
    assert "row" in answers[1].error_message


def test_what_names_both_models_is_the_guards_to_read(house: House) -> None:
    rest = infer_request(SUSPICIOUS[:1], model="").SerializeToString()
    before = house.inferences(UNGUARDED)
    with grpc.insecure_channel(house.envoy.address) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"\x0a\x05plain" + rest + b"\x0a\x04tiny", timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert house.inferences(UNGUARDED) == before


def test_when_a_guard_dies_the_other_takes_over_and_without_any_only_the_unguarded_go_on(
    house: House,
) -> None:
    house.kill_guard(GUARDS[0])
    after = [verdict(house, GUARDED) for _ in range(20)]
    assert set(after) <= {"accept", UNAVAILABLE}  # what was on its way to the dead one is not sent again
    becomes(lambda: {verdict(house, GUARDED) for _ in range(10)}, {"accept"})
    assert verdict(house, GUARDED, SUSPICIOUS[:1]) is grpc.StatusCode.PERMISSION_DENIED

    house.kill_guard(GUARDS[1])
    before = house.inferences(GUARDED)
    assert {verdict(house, GUARDED) for _ in range(10)} == {UNAVAILABLE}
    assert verdict(house, UNGUARDED) == "none"
    assert house.inferences(GUARDED) == before
    with grpc.insecure_channel(house.envoy.address) as channel:
        stub = stub_of(channel)
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE_S).ready is True
        assert stub.ModelReady(pb.ModelReadyRequest(name=UNGUARDED), timeout=PATIENCE_S).ready is True
        with pytest.raises(grpc.RpcError) as not_ready:
            stub.ModelReady(pb.ModelReadyRequest(name=GUARDED), timeout=PATIENCE_S)
    assert not_ready.value.code() is UNAVAILABLE

    house.start_guards(GUARDS[0])
    becomes(lambda: verdict(house, GUARDED), "accept")
