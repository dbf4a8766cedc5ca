"""ModelStreamInfer behind a real gRPC server: each message answered as by ModelInfer, in order, bounded."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import numpy as np
import pytest
from fake_dataplane import FakeDataPlane

from guard import errors
from guard.messages import InferRequest, InferResponse
from guard.rpc.interceptors import ORIGINAL, Doorkeeper
from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.rpc.servicer import InferenceServicer

LIMIT_BYTES = 4096
CONCURRENT = 16
PATIENCE_S = 60
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
STATUS_WANTED = (("triton_grpc_error", "true"),)


class GatedDataPlane(FakeDataPlane):
    """Answers a request once its id's gate is open, or refuses it with what is set for its id."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.gated = False
        self.inside: list[str] = []
        self.peak = 0
        self.ended: list[str] = []
        self._changed = asyncio.Condition()

    async def infer(self, request: InferRequest) -> InferResponse:
        self.inside.append(request.id)
        self.peak = max(self.peak, len(self.inside))
        await self._notify()
        try:
            if self.gated:
                await self.gates[request.id].wait()
            if request.id in self.refuses:
                raise self.refuses[request.id]
            return await super().infer(request)
        finally:
            self.inside.remove(request.id)
            self.ended.append(request.id)
            await self._notify()

    async def until(self, inside: int) -> None:
        """Wait until that many requests are inside."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: len(self.inside) == inside)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@dataclass
class House:
    """A running server, a stub that calls it, and what was reported of its calls."""

    plane: GatedDataPlane
    servicer: InferenceServicer
    channel: grpc.aio.Channel
    stub: Any
    reported: list[tuple[str, str, str]] = field(default_factory=list)

    async def answers(self, *requests: pb.ModelInferRequest, **options: Any) -> list[Any]:
        """Send requests on a stream that is closed then, and return all that comes back."""
        call = self.stub.ModelStreamInfer(iter(requests), timeout=PATIENCE_S, **options)
        return [answer async for answer in call]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    reported: list[tuple[str, str, str]] = []

    def report(method: str, model: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        reported.append((method, model, code))

    plane = GatedDataPlane()
    servicer = InferenceServicer(plane, on_rpc=report, max_concurrent_requests=CONCURRENT)
    doorkeeper = Doorkeeper(max_message_bytes=LIMIT_BYTES, on_rpc=report, keep=("ModelStreamInfer",))
    server = grpc.aio.server(interceptors=[doorkeeper])
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), timeout=PATIENCE_S)
        yield House(plane, servicer, channel, pb_grpc.GRPCInferenceServiceStub(channel), reported)
    await server.stop(None)


def echo(name: str, *, rows: int = 1, model: str = "echo") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=name)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.full(rows * 4, float(len(name)), np.float32).tobytes())
    return request


def malformed(name: str) -> pb.ModelInferRequest:
    request = echo(name)
    request.raw_input_contents[0] = b"short"
    return request


def said(answer: pb.ModelStreamInferResponse) -> dict[str, Any]:
    """Return the parameters of an answer in plain values."""
    parameters = answer.infer_response.parameters
    return {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in parameters.items()}


class Unread:
    """The context of a stream whose client reads nothing until ``empty`` is set."""

    def __init__(self) -> None:
        self.full, self.empty = asyncio.Event(), asyncio.Event()
        self.written: list[pb.ModelStreamInferResponse] = []
        self.aborted: tuple[Any, ...] | None = None

    async def write(self, message: pb.ModelStreamInferResponse) -> None:
        self.full.set()
        await self.empty.wait()
        self.written.append(message)

    async def abort(self, *refusal: Any) -> NoReturn:
        self.aborted = refusal
        raise AssertionError(refusal)

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def send_initial_metadata(self, initial_metadata: Any) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None: ...


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Read a stream to its end and return how it ended."""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code(), await call.details()


async def test_each_message_is_answered_as_a_call_would_be_and_said_to_be_final(house: House) -> None:
    [streamed] = await house.answers(echo("a", rows=3))
    called = await house.stub.ModelInfer(echo("a", rows=3))

    assert streamed.error_message == ""
    assert said(streamed) == {"guard_verdict": "accept", "guard_passes": 4, "triton_final_response": True}
    del streamed.infer_response.parameters["triton_final_response"]
    assert streamed.infer_response == called
    assert house.reported == [("ModelStreamInfer", "echo", "OK"), ("ModelInfer", "echo", "OK")]


async def test_answers_come_in_the_order_of_the_requests_whichever_is_ready_first(house: House) -> None:
    house.plane.gated = True
    receiving = asyncio.create_task(house.answers(echo("a"), echo("b"), echo("c")))
    await house.plane.until(inside=3)

    for left, name in ((2, "c"), (1, "b"), (0, "a")):
        house.plane.gates[name].set()
        await house.plane.until(inside=left)

    assert [answer.infer_response.id for answer in await receiving] == ["a", "b", "c"]
    assert house.plane.ended == ["c", "b", "a"]


async def test_a_message_that_fails_gets_status_and_words_of_the_call_and_the_stream_goes_on(
    house: House,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.stub.ModelInfer(malformed("b"))
    house.plane.refuses["c"] = errors.QueueFullError("the queue is full; retry")

    answers = await house.answers(echo("a"), malformed("b"), echo("c"), echo("d"))

    assert [answer.error_message for answer in answers] == [
        "",
        f"[StatusCode.INVALID_ARGUMENT] {refused.value.details()}",
        "[StatusCode.RESOURCE_EXHAUSTED] the queue is full; retry",
        "",
    ]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert {answer.infer_response.model_name for answer in answers} == {"echo"}
    assert said(answers[2]) == {"guard_status": "RESOURCE_EXHAUSTED", "triton_final_response": True}
    assert not answers[1].infer_response.outputs
    assert [code for _, _, code in house.reported[1:]] == [
        *("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OK")
    ]


async def test_a_rejection_says_which_rows_and_how_suspicious_they_are(house: House) -> None:
    words = "rejected: rows 0, 3"
    house.plane.refuses["a"] = errors.InputRejectedError(words, rows=(0, 3), scores=(-0.1, -0.25))

    [answer] = await house.answers(echo("a", rows=4))

    assert answer.error_message == f"[StatusCode.PERMISSION_DENIED] {words}"
    assert said(answer) == {
        "guard_status": "PERMISSION_DENIED",
        "guard_verdict": "reject",
        "guard_row_count": "2",
        "guard_rows": "0,3",
        "guard_scores": "-0.1,-0.25",
        "triton_final_response": True,
    }


async def test_a_defect_of_one_message_is_an_id_in_the_log_and_the_stream_goes_on(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.plane.refuses["a"] = KeyError("secret")

    broken, answered = await house.answers(echo("a"), echo("b"))

    assert broken.error_message.startswith("[StatusCode.INTERNAL] unexpected error, see server log ")
    assert "KeyError: 'secret'" in caplog.text
    assert (answered.error_message, answered.infer_response.id) == ("", "b")


async def test_with_tritons_header_the_first_failure_ends_the_stream_with_its_status(house: House) -> None:
    house.plane.gated = True
    house.plane.refuses["b"] = errors.InputRejectedError("rejected: row 0", rows=(0,), scores=(-0.5,))
    call = house.stub.ModelStreamInfer(metadata=STATUS_WANTED, timeout=PATIENCE_S)
    for name in "abc":
        await call.write(echo(name))
    await house.plane.until(inside=3)
    house.plane.gates["b"].set()
    house.plane.gates["a"].set()

    assert (await call.read()).infer_response.id == "a"
    assert await status_of(call) == (grpc.StatusCode.PERMISSION_DENIED, "rejected: row 0")
    assert dict(await call.trailing_metadata())["guard-rows"] == "0"
    await house.plane.until(inside=0)  # the third was given up, nobody opened its gate
    assert house.plane.ended == ["b", "a", "c"]
    assert [code for _, _, code in house.reported] == ["PERMISSION_DENIED", "OK", "CANCELLED"]


async def test_what_is_too_large_or_no_message_is_answered_in_its_turn_and_counted(house: House) -> None:
    stream = house.channel.stream_stream(STREAM, None, pb.ModelStreamInferResponse.FromString)
    sent = [
        echo("a").SerializeToString(),
        b"junk" * 9,
        b"x" * (LIMIT_BYTES + 1),
        echo("d").SerializeToString(),
    ]

    answers = [answer async for answer in stream(iter(sent), timeout=PATIENCE_S)]

    assert [answer.error_message.partition(";")[0] for answer in answers] == [
        "",
        "[StatusCode.INVALID_ARGUMENT] the message of 36 bytes is not one that ModelStreamInfer takes",
        "[StatusCode.RESOURCE_EXHAUSTED] the message has 4097 bytes, "
        "expected at most 4096 (max_message_bytes)",
        "",
    ]
    assert [answer.infer_response.id for answer in answers] == ["a", "", "", "d"]
    assert sorted(house.reported) == [
        ("ModelStreamInfer", "", "INVALID_ARGUMENT"),
        ("ModelStreamInfer", "", "RESOURCE_EXHAUSTED"),
        *[("ModelStreamInfer", "echo", "OK")] * 2,
    ]


async def test_each_request_keeps_the_bytes_of_its_own_message(house: House) -> None:
    house.plane.gated = True
    requests = [echo(name * length) for name, length in zip("abcd", range(1, 5), strict=True)]
    receiving = asyncio.create_task(house.answers(*requests))
    await house.plane.until(inside=4)
    for request in requests:
        house.plane.gates[request.id].set()
    await receiving

    kept = {one.id: one.original.message for one in house.plane.requests if one.original}
    assert kept == {one.id: one.SerializeToString() for one in requests}


async def test_one_stream_has_no_more_under_way_than_its_window(house: House) -> None:
    house.plane.gated = True
    window = CONCURRENT // 4
    requests = [echo(f"{number}") for number in range(3 * window)]
    receiving = asyncio.create_task(house.answers(*requests))

    for number, request in enumerate(requests):
        await house.plane.until(inside=min(window, len(requests) - number))
        house.plane.gates[request.id].set()

    assert [answer.infer_response.id for answer in await receiving] == [one.id for one in requests]
    assert house.plane.peak == window


async def test_answers_that_nobody_reads_hold_the_window_and_so_the_sender() -> None:
    plane, context = GatedDataPlane(), Unread()
    servicer = InferenceServicer(plane, max_concurrent_requests=CONCURRENT)
    taken = 0

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield echo(f"{number}")

    serving = asyncio.create_task(servicer.ModelStreamInfer(requests(), context))
    await context.full.wait()
    for _ in range(1000):  # the event loop turns, and nothing moves
        await asyncio.sleep(0)
    held = taken, len(plane.ended)
    context.empty.set()
    await serving

    assert held == (CONCURRENT // 4, CONCURRENT // 4)
    assert [answer.infer_response.id for answer in context.written] == [f"{number}" for number in range(100)]


async def test_a_stream_holds_no_message_once_it_is_answered_sent_or_not() -> None:
    plane, context = GatedDataPlane(), Unread()
    servicer = InferenceServicer(plane, max_concurrent_requests=CONCURRENT)
    originals = [bytes([number]) * 99 for number in range(CONCURRENT // 4)]
    unheld = [sys.getrefcount(original) for original in originals]
    silent = asyncio.Event()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(len(originals)):
            ORIGINAL.set(originals[number])
            yield echo("a")
        await silent.wait()

    serving = asyncio.create_task(servicer.ModelStreamInfer(requests(), context))
    await context.full.wait()
    for _ in range(1000):  # the event loop turns: all is answered, and one is being sent
        await asyncio.sleep(0)
    plane.requests.clear()
    held = [sys.getrefcount(original) for original in originals]
    silent.set()
    context.empty.set()
    await serving

    assert held == unheld
    assert len(plane.ended) == len(originals)
    assert len(context.written) == len(originals)


async def test_a_silent_stream_holds_no_message_however_it_came(house: House) -> None:
    call = house.stub.ModelStreamInfer()
    await call.write(echo("a"))
    await call.read()
    original = house.plane.requests[-1].original
    assert original is not None
    message = original.message
    house.plane.requests.clear()
    del original

    assert sys.getrefcount(message) == 2, "the name here, and the argument"
    call.cancel()


async def test_calls_and_streams_together_stay_below_the_limit_and_calls_find_room(house: House) -> None:
    house.plane.gated = True
    streams = [
        asyncio.create_task(house.answers(*(echo(f"{stream}-{number}") for number in range(4))))
        for stream in range(5)
    ]
    await house.plane.until(inside=12)  # three quarters, of 20 that were sent
    calls = [asyncio.ensure_future(house.stub.ModelInfer(echo(f"call {number}"))) for number in range(4)]
    await house.plane.until(inside=CONCURRENT)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.stub.ModelInfer(echo("too many"))
    house.plane.gated = False
    for gate in list(house.plane.gates.values()):
        gate.set()
    answers = await asyncio.gather(*streams)
    await asyncio.gather(*calls)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "16 requests are under way already (max_concurrent_requests)" in refused.value.details()
    assert [len(one) for one in answers] == [4] * 5
    assert house.plane.peak == CONCURRENT
    await house.stub.ModelInfer(echo("after"))


async def test_streams_leave_a_quarter_of_the_rows_to_calls_and_wait_rather_than_be_refused() -> None:
    plane, context = GatedDataPlane(), Unread()
    plane.gated = True
    context.empty.set()
    servicer = InferenceServicer(plane, max_concurrent_requests=1000, max_queue_rows=16)
    sizes = {"a": 8, "b": 4, "c": 1, "d": 100, "e": 1}

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for name, rows in sizes.items():
            yield echo(name, rows=rows)

    serving = asyncio.create_task(servicer.ModelStreamInfer(requests(), context))
    seen = []
    for done, inside in (("", 2), ("a", 2), ("b", 1), ("c", 1), ("d", 1), ("e", 0)):
        if done:
            plane.gates[done].set()
        await plane.until(inside=inside)
        for _ in range(100):
            await asyncio.sleep(0)
        seen.append("".join(plane.inside))
    await serving

    assert seen == ["ab", "bc", "c", "d", "e", ""]
    assert [answer.infer_response.id for answer in context.written] == list(sizes)


async def test_more_streams_than_half_the_calls_are_refused(house: House) -> None:
    calls = []
    for number in range(CONCURRENT // 2):
        calls.append(house.stub.ModelStreamInfer(timeout=PATIENCE_S))
        await calls[-1].write(echo(f"{number}"))
        await calls[-1].read()

    refused = house.stub.ModelStreamInfer(iter([echo("late")]), timeout=PATIENCE_S)
    code, words = await status_of(refused)
    await calls[0].done_writing()
    assert (await status_of(calls[0]))[0] is grpc.StatusCode.OK
    [answer] = await house.answers(echo("in its place"))

    assert (code, words.partition(",")[0]) == (
        *(grpc.StatusCode.RESOURCE_EXHAUSTED, "8 streams are open already"),
    )
    assert answer.infer_response.id == "in its place"
    assert house.reported[-2:] == [
        ("ModelStreamInfer", "", "RESOURCE_EXHAUSTED"),
        ("ModelStreamInfer", "echo", "OK"),
    ]


@pytest.mark.parametrize(("timeout_s", "code"), [(PATIENCE_S, "CANCELLED"), (3.0, "DEADLINE_EXCEEDED")])
async def test_who_hangs_up_or_has_no_more_time_ends_all_that_is_under_way(
    house: House, timeout_s: float, code: str
) -> None:
    house.plane.gated = True
    call = house.stub.ModelStreamInfer(timeout=timeout_s)
    for name in "abc":
        await call.write(echo(name))
    await house.plane.until(inside=3)

    if code == "CANCELLED":
        assert call.cancel() is True
    await house.plane.until(inside=0)

    house.plane.gated = False
    assert [one.infer_response.id for one in await house.answers(echo("next"))] == ["next"]
    assert house.reported[:3] == [("ModelStreamInfer", "echo", code)] * 3


async def test_at_the_end_what_was_accepted_is_answered_and_the_stream_is_told(house: House) -> None:
    house.plane.gated = True
    call, idle = (house.stub.ModelStreamInfer(timeout=PATIENCE_S) for _ in range(2))
    await call.write(echo("a"))
    await house.plane.until(inside=1)

    house.servicer.end_streams()
    house.plane.gates["a"].set()
    answer = await call.read()

    assert (answer.infer_response.id, answer.error_message) == ("a", "")
    for one in (call, idle, house.stub.ModelStreamInfer(iter([echo("late")]), timeout=PATIENCE_S)):
        code, words = await status_of(one)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert words.startswith("the server is shutting down")


async def test_a_stream_that_its_client_has_finished_ends_well_though_the_server_stops() -> None:
    plane, context, closed = GatedDataPlane(), Unread(), asyncio.Event()
    plane.gated = True
    servicer = InferenceServicer(plane)

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield echo("a")
        closed.set()

    serving = asyncio.create_task(servicer.ModelStreamInfer(requests(), context))
    await closed.wait()
    await plane.until(inside=1)
    servicer.end_streams()
    context.empty.set()
    plane.gates["a"].set()
    await serving

    assert [answer.infer_response.id for answer in context.written] == ["a"]
    assert context.aborted is None
