"""Whatever callers send: a status and words that say what came and what was expected, a count, and the
server answers the next one.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import message_factory

from guard.rpc.pb import open_inference_pb2 as pb
from guard.rpc.pb import open_inference_pb2_grpc as pb_grpc
from guard.runtime.scheduler import CheckedClassifier
from tests import tiny_models
from tests.artifacts import write_tiny_artifact
from tests.guard.fake_classifier import GatedClassifier
from tests.reference_check import images_and_boundary, linear_logits
from tests.serving import PATIENCE_S, Client, hold_devices, infer_request, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLEAN, SUSPICIOUS, MEANS, BOUNDARY = images_and_boundary()
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, DEADLINE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
ROW_BYTES = 3 * 8 * 8 * 4
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFER_PATH = f"/{SERVICE.full_name}/ModelInfer"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path, boundary_bits=BOUNDARY)
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One server for all who only need to know what it counted meanwhile; it has to survive them all."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_artifact(root, boundary_bits=BOUNDARY)
    async with serving(root, max_request_rows=16) as client:
        yield client


@pytest.fixture
def client(shared_client: Client) -> Client:
    shared_client.count_from_now()
    return shared_client


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GatedClassifier]]:
    """The device of the next server is held by the test."""
    devices: list[GatedClassifier] = []

    def hold(classifier: CheckedClassifier) -> GatedClassifier:
        devices.append(GatedClassifier(classifier))
        return devices[-1]

    hold_devices(monkeypatch, hold)
    yield devices
    for device in devices:
        device.let_all_go()


async def expect_a_good_request_to_work(client: Client) -> None:
    answer = await client.infer(infer_request(CLEAN[:2], id="good"))
    assert (answer.id, answer.parameters["guard_verdict"].string_param) == ("good", "accept")
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 10)
    np.testing.assert_allclose(logits, linear_logits(CLEAN[:2]), atol=1e-4)


async def eventually(client: Client, seen: Callable[[], bool]) -> None:
    """Ask the server for a sign of life until something is seen."""
    async with asyncio.timeout(PATIENCE_S):
        while not seen():
            await client.stub.ServerLive(pb.ServerLiveRequest())


# Requests that do not fit

Change = Callable[[pb.ModelInferRequest], object]


def with_images(images: np.ndarray) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = images.shape
        request.raw_input_contents[0] = images.astype("<f4").tobytes()

    return change


def with_value(value: float) -> Change:
    images = CLEAN[:3].copy()
    images[1, 2, 3, 4] = value
    return with_images(images)


def with_datatype(datatype: str, dtype: str = "<f4") -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].datatype = datatype
        request.raw_input_contents[0] = CLEAN[:2].astype(dtype).tobytes()

    return change


def with_typed_contents(*, raw: bool) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].contents.fp32_contents.extend(CLEAN[:2].ravel().tolist())
        if not raw:
            del request.raw_input_contents[:]
            request.inputs[0].contents.fp32_contents.pop()

    return change


def with_another_input(name: str) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs.add(name=name, datatype="FP32", shape=[1])
        request.raw_input_contents.append(b"\0\0\0\0")

    return change


def with_nan_in_typed_contents(request: pb.ModelInferRequest) -> None:
    images = CLEAN[:2].copy()
    images[0, 0, 0, 0] = math.nan
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(images.ravel().tolist())


def without_inputs(request: pb.ModelInferRequest) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def twice_the_output(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="logits")
    request.outputs.add(name="logits")


@dataclass(frozen=True)
class Case:
    """A change that makes a good request of two rows a bad one, and what is answered."""

    change: Change
    message: str
    code: grpc.StatusCode = INVALID
    model: str = "tiny"
    uncheckable: str = ""


UNFIT = (
    "so it cannot be checked for a trigger (1 such rows); send finite images preprocessed as at calibration"
)
CASES = {
    "unknown model": Case(
        lambda request: setattr(request, "model_name", "nope"),
        "model 'nope' is not served here; loaded: ['tiny']",
        NOT_FOUND,
        model="",
    ),
    "no model": Case(
        lambda request: request.ClearField("model_name"),
        "model '' is not served here; loaded: ['tiny']",
        NOT_FOUND,
        model="",
    ),
    "unknown version": Case(
        lambda request: setattr(request, "model_version", "7"),
        "version '7' of model 'tiny' is not served here; loaded: '1'",
        NOT_FOUND,
    ),
    "wrong input name": Case(
        lambda request: setattr(request.inputs[0], "name", "pictures"),
        "model 'tiny' takes exactly one input, 'images', got 'pictures'; send 'images' alone",
    ),
    "no input": Case(
        without_inputs,
        "model 'tiny' takes exactly one input, 'images', got none; send 'images' alone",
    ),
    "several inputs": Case(
        with_another_input("mask"),
        "model 'tiny' takes exactly one input, 'images', got 'images', 'mask'; send 'images' alone",
    ),
    "the input twice": Case(
        with_another_input("images"),
        "input 'images': expected each input once, got it more than once",
    ),
    "channels last": Case(
        with_images(CLEAN[:2].transpose(0, 2, 3, 1)),
        "input 'images' has shape (2, 8, 8, 3), expected (batch, 3, 8, 8) in NCHW order",
    ),
    "no batch axis": Case(
        with_images(CLEAN[0]),
        "input 'images' has shape (3, 8, 8), expected (batch, 3, 8, 8) in NCHW order",
    ),
    "no shape": Case(
        lambda request: request.inputs[0].ClearField("shape"),
        f"input 'images': expected 4 bytes for FP32 [], got {2 * ROW_BYTES} bytes",
    ),
    "negative dimension": Case(
        lambda request: request.inputs[0].shape.__setitem__(0, -1),
        "input 'images': expected dimensions of 0 or more, got [-1, 3, 8, 8]",
    ),
    "shape beyond all bounds": Case(
        lambda request: request.inputs[0].shape.__setitem__(slice(None), [2**62, 2**62, 0, 4]),
        "input 'images': shape [4611686018427387904, 4611686018427387904, 0, 4] is too large for any array",
    ),
    "empty batch": Case(
        with_images(CLEAN[:0]),
        "input 'images' has a batch of 0 rows, expected 1 to 16; send at least one image",
    ),
    "batch over the limit": Case(
        with_images(np.zeros((17, 3, 8, 8))),
        "input 'images' has a batch of 17 rows, expected 1 to 16; split the request",
    ),
    "another datatype": Case(
        with_datatype("FP64", "<f8"),
        "input 'images' has datatype FP64, expected FP32; convert the images",
    ),
    "unknown datatype": Case(
        with_datatype("FP8"),
        "input 'images': datatype 'FP8' is not accepted; expected one of BOOL, UINT8, UINT16, UINT32, "
        "UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES",
    ),
    "too few bytes": Case(
        lambda request: request.raw_input_contents.__setitem__(0, b"\0" * 5),
        f"input 'images': expected {2 * ROW_BYTES} bytes for FP32 [2, 3, 8, 8], got 5 bytes",
    ),
    "too many bytes": Case(
        lambda request: request.raw_input_contents.__setitem__(0, b"\0" * (2 * ROW_BYTES + 1)),
        f"input 'images': expected {2 * ROW_BYTES} bytes for FP32 [2, 3, 8, 8], got {2 * ROW_BYTES + 1} "
        "bytes",
    ),
    "more blobs than inputs": Case(
        lambda request: request.raw_input_contents.append(b""),
        "raw_input_contents: expected 1 blobs, one for each input, got 2",
    ),
    "raw and typed contents": Case(
        with_typed_contents(raw=True),
        "input 'images': expected either raw_input_contents or contents, got both",
    ),
    "too few typed elements": Case(
        with_typed_contents(raw=False),
        "input 'images': expected 384 elements for FP32 [2, 3, 8, 8], got 383 in fp32_contents",
    ),
    "NaN": Case(
        with_value(math.nan),
        f"row 1 of input 'images' holds 1 NaN or infinite values, {UNFIT}",
        uncheckable="non_finite",
    ),
    "NaN in typed contents": Case(
        with_nan_in_typed_contents,
        f"row 0 of input 'images' holds 1 NaN or infinite values, {UNFIT}",
        uncheckable="non_finite",
    ),
    "infinity": Case(
        with_value(-math.inf),
        f"row 1 of input 'images' holds 1 NaN or infinite values, {UNFIT}",
        uncheckable="non_finite",
    ),
    "out of range": Case(
        with_value(255.0),
        f"row 1 of input 'images' holds values from {CLEAN[1].min():.4g} to 255, outside the calibrated "
        f"range 0 to 1, {UNFIT}",
        uncheckable="out_of_range",
    ),
    "unknown output": Case(
        lambda request: request.outputs.add(name="features"),
        "output 'features' is not one of model 'tiny'; expected one of logits, guard_verdict, guard_score, "
        "guard_p_value, guard_passes",
    ),
    "an output twice": Case(
        twice_the_output,
        "output 'logits': expected each output once, got it more than once",
    ),
    "sequence": Case(
        lambda request: setattr(request.parameters["sequence_id"], "int64_param", 3),
        "request parameter 'sequence_id' is not supported: the guard checks each request by itself and keeps "
        "no sequences; send requests without sequence_* parameters",
    ),
    "unknown parameter": Case(
        lambda request: setattr(request.parameters["speed"], "string_param", "high"),
        "request parameter 'speed' is not supported; supported: guard_*, and without effect: priority, "
        "timeout, headers, binary_data_output, triton_enable_empty_final_response",
    ),
    "a parameter of the guard's": Case(
        lambda request: setattr(request.parameters["guard_verdict"], "string_param", "accept"),
        "parameter 'guard_verdict' is set by the guard, not by callers; leave it out",
    ),
    "a parameter without a value": Case(
        lambda request: request.parameters["guard_verdict"],
        "parameter 'guard_verdict' has no value; set one of its *_param fields",
    ),
    "another parameter of an output": Case(
        lambda request: setattr(request.outputs.add(name="logits").parameters["quantile"], "int64_param", 3),
        "output 'logits': parameters 'quantile' are not supported; send it without them",
    ),
    "input in shared memory": Case(
        lambda request: setattr(
            request.inputs[0].parameters["shared_memory_region"], "string_param", "region"
        ),
        "input 'images': the guard does not read shared memory ('shared_memory_region'), since what lies "
        "there can change after the check; send the tensor in the request",
    ),
    "output in shared memory": Case(
        lambda request: setattr(
            request.outputs.add(name="logits").parameters["shared_memory_region"], "string_param", "region"
        ),
        "output 'logits': the guard does not read shared memory ('shared_memory_region'), since what lies "
        "there can change after the check; send the tensor in the request",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_bad_request_is_answered_in_words_and_counted_and_the_next_one_works(
    client: Client, case: Case
) -> None:
    request = infer_request(CLEAN[:2])
    case.change(request)

    assert await client.refusal(request) == (case.code, case.message)

    await expect_a_good_request_to_work(client)
    assert client.infers_counted() == {(case.model, case.code.name): 1, ("tiny", "OK"): 1}
    refused = {(case.uncheckable, "refused"): 1} if case.uncheckable else {}
    assert client.counted("guard_uncheckable_inputs_total", "reason", "outcome") == refused
    unchecked = {("unchecked",): 1} if case.uncheckable else {}
    assert client.counted("guard_inputs_total", "verdict") == {("accept",): 2, **unchecked}
    assert client.counted("guard_shed_requests_total") == {}


async def test_a_triggered_row_is_refused_with_its_index_and_the_next_one_works(client: Client) -> None:
    request = infer_request(np.concatenate([CLEAN[:1], SUSPICIOUS[:1]]))

    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        await client.infer(request)

    assert rejected.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert rejected.value.details().startswith("rejected: row 1 of 2 looks triggered (mean entropy ")
    metadata = dict(rejected.value.trailing_metadata())
    assert (metadata["guard-verdict"], metadata["guard-rows"]) == ("reject", "1")
    assert float(metadata["guard-scores"]) == pytest.approx(-MEANS[6], abs=1e-4)
    await expect_a_good_request_to_work(client)
    assert client.counted("guard_inputs_total", "verdict") == {("accept",): 3, ("reject",): 1}


async def test_a_model_that_gives_no_numbers_is_the_servers_fault_and_counted(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path, model=tiny_models.not_a_number_classifier())
    async with serving(tmp_path) as client:
        assert await client.refusal(infer_request(CLEAN[:2])) == (
            grpc.StatusCode.INTERNAL,
            "row 0 of the request gave no finite entropy (2 such rows), so it cannot be checked for a "
            "trigger; send another input, or have the operator look at the model",
        )
        assert client.counted("guard_uncheckable_inputs_total", "reason", "outcome") == {
            ("check_failed", "refused"): 2
        }


async def test_every_row_may_be_asked_for_its_verdict_on_the_wire(repository: Path) -> None:
    request = infer_request(np.concatenate([SUSPICIOUS[:1], CLEAN[:1]]))
    for name in ("guard_verdict", "guard_score", "guard_p_value", "guard_passes"):
        request.outputs.add(name=name)

    async with serving(repository, policy="flag") as client:
        answer = await client.infer(request)

    assert [(out.name, out.datatype, list(out.shape)) for out in answer.outputs] == [
        ("guard_verdict", "BYTES", [2]),
        ("guard_score", "FP32", [2]),
        ("guard_p_value", "FP32", [2]),
        ("guard_passes", "INT32", [2]),
    ]
    verdicts, scores, _, passes = answer.raw_output_contents
    assert verdicts == b"\4\0\0\0flag\6\0\0\0accept"
    assert np.frombuffer(scores, "<f4")[0] == pytest.approx(-MEANS[6], abs=1e-4)
    assert np.frombuffer(passes, "<i4").tolist() == [8, 8]


# Messages


async def test_a_message_over_the_limit_says_how_large_it_may_be_and_is_counted(repository: Path) -> None:
    async with serving(repository, max_message_bytes=20_000) as client:
        status, words = await client.refusal(infer_request(np.zeros((30, 3, 8, 8))))

        assert status is EXHAUSTED
        assert re.fullmatch(
            r"the message has 230\d\d bytes, expected at most 20000 \(max_message_bytes\); send fewer rows "
            r"in a request",
            words,
        )
        await expect_a_good_request_to_work(client)
        assert client.infers_counted() == {("", "RESOURCE_EXHAUSTED"): 1, ("tiny", "OK"): 1}


async def test_a_message_far_over_the_limit_is_refused_before_it_is_read(repository: Path) -> None:
    async with serving(repository, max_message_bytes=20_000) as client:
        status, words = await client.refusal(infer_request(np.zeros((60, 3, 8, 8))))

        assert status is EXHAUSTED
        assert re.fullmatch(r"SERVER: Received message larger than max \(46\d\d\d vs\. 40000\)", words)
        await expect_a_good_request_to_work(client)
        assert client.infers_counted() == {("tiny", "OK"): 1}


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x05tin"], ids=repr)
async def test_a_message_that_is_none_is_refused_in_words_and_without_a_traceback(
    client: Client, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.channel.unary_unary(INFER_PATH)(message, timeout=PATIENCE_S)

    assert (refused.value.code(), refused.value.details()) == (
        INVALID,
        f"the message of {len(message)} bytes is not one that ModelInfer takes; make the client from the "
        f".proto file of the protocol",
    )
    assert [record for record in caplog.records if record.exc_info] == []
    await expect_a_good_request_to_work(client)
    assert client.infers_counted() == {("", "INVALID_ARGUMENT"): 1, ("tiny", "OK"): 1}


NOISE = {
    "HTTP/1": b"GET /metrics HTTP/1.1\r\nHost: guard\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "zeros": b"\0" * 1000,
    "HTTP/2 and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
    "half a greeting": b"PRI * HT",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
async def test_noise_on_the_port_harms_nobody(client: Client, noise: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    writer.write(noise)
    writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()

    assert answer[3:4] in {b"", b"\x04"}  # nothing, or the settings every HTTP/2 server begins with
    await expect_a_good_request_to_work(client)
    assert client.infers_counted() == {("tiny", "OK"): 1}


# Methods

REFUSED = {
    "RepositoryModelLoad": "models are loaded by the operator, on the admin port (setting admin_port)",
    "RepositoryModelUnload": "models are loaded by the operator, on the admin port (setting admin_port)",
    "SystemSharedMemoryStatus": "tensors in shared memory would go around the guard",
    "SystemSharedMemoryRegister": "tensors in shared memory would go around the guard",
    "SystemSharedMemoryUnregister": "tensors in shared memory would go around the guard",
    "CudaSharedMemoryStatus": "tensors in shared memory would go around the guard",
    "CudaSharedMemoryRegister": "tensors in shared memory would go around the guard",
    "CudaSharedMemoryUnregister": "tensors in shared memory would go around the guard",
    "TraceSetting": "trace and log settings are the operator's",
    "LogSettings": "trace and log settings are the operator's",
}


async def test_methods_that_are_not_served_say_why_and_are_counted(client: Client) -> None:
    for name, why in REFUSED.items():
        request = message_factory.GetMessageClass(SERVICE.methods_by_name[name].input_type)()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(client.stub, name)(request)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert refused.value.details().startswith(f"{name} is not served: {why}")

    assert client.counted("guard_rpcs_total", "method", "code") == {
        (name, "UNIMPLEMENTED"): 1 for name in REFUSED
    }
    await expect_a_good_request_to_work(client)


async def test_a_stream_that_is_not_served_is_refused_once_its_sender_has_sent_something(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sender's own send fails, and gRPC gives INTERNAL in place of the reason."""
    monkeypatch.setattr("guard.rpc.interceptors._FIRST_MESSAGE_S", 10 * PATIENCE_S)
    call = client.channel.stream_stream("/inference.Nope/Stream")(timeout=PATIENCE_S)
    early, _ = await asyncio.wait([asyncio.ensure_future(call.code())], timeout=0.1)
    assert not early

    await call.write(infer_request(CLEAN[:1]).SerializeToString())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details().startswith("method '/inference.Nope/Stream' is not served")
    assert client.counted("guard_rpcs_total", "method", "code") == {("unknown", "UNIMPLEMENTED"): 1}


@pytest.mark.parametrize(
    "path", [f"/{SERVICE.full_name}/ModelInferno", "/inference.Nope/ModelInfer", "/x/" + "y" * 5000]
)
async def test_a_method_that_nobody_knows_is_refused_and_counted_as_unknown(
    client: Client, path: str
) -> None:
    calls = (
        client.channel.unary_unary(path)(b"", timeout=PATIENCE_S),
        client.channel.stream_stream(path)(timeout=PATIENCE_S).read(),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert refused.value.details().startswith(f"method '{path[:1000]}")

    assert client.counted("guard_rpcs_total", "method", "code") == {("unknown", "UNIMPLEMENTED"): 2}
    await expect_a_good_request_to_work(client)


# Time and room


async def test_a_deadline_that_passes_in_the_queue_frees_it_and_is_counted(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository) as client:
        running = asyncio.create_task(client.infer(infer_request(CLEAN[:1])))
        await held[0].next_call()

        status, _ = await client.refusal(infer_request(CLEAN[:3]), timeout=2.0)

        assert status is DEADLINE
        await eventually(client, lambda: client.counted("guard_queue_rows") == {(): 1})
        held[0].let_all_go()
        assert (await running).parameters["guard_verdict"].string_param == "accept"
        await expect_a_good_request_to_work(client)
        await eventually(client, lambda: len(client.infers_counted()) == 2)
        assert client.infers_counted() == {("tiny", "DEADLINE_EXCEEDED"): 1, ("tiny", "OK"): 2}
        assert client.counted("guard_shed_requests_total", "reason") == {("deadline",): 1}
        assert client.counted("guard_inputs_total", "verdict") == {("accept",): 3}


async def test_the_operators_limit_holds_where_the_caller_set_none(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository, request_timeout_s=2.0) as client:
        assert await client.refusal(infer_request(CLEAN[:3]), timeout=None) == (
            DEADLINE,
            "model 'tiny' did not answer within 2.000 s; allow more time, send fewer rows, or add capacity",
        )
        held[0].let_all_go()
        await expect_a_good_request_to_work(client)
        assert client.counted("guard_shed_requests_total", "reason") == {("deadline",): 1}


async def test_a_client_who_hangs_up_in_the_queue_frees_it_and_is_counted(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository) as client:
        running = asyncio.create_task(client.infer(infer_request(CLEAN[:1])))
        await held[0].next_call()
        call = client.stub.ModelInfer(infer_request(CLEAN[:3]))
        await eventually(client, lambda: client.counted("guard_queue_rows") == {(): 4})

        assert call.cancel() is True

        await eventually(client, lambda: client.counted("guard_queue_rows") == {(): 1})
        held[0].let_all_go()
        assert (await running).parameters["guard_verdict"].string_param == "accept"
        await expect_a_good_request_to_work(client)
        assert client.infers_counted() == {("tiny", "CANCELLED"): 1, ("tiny", "OK"): 2}
        assert client.counted("guard_shed_requests_total", "reason") == {("cancelled",): 1}


async def test_a_client_whose_connection_breaks_frees_the_queue(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository) as client:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{client.server.port}") as channel:
            call = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer_request(CLEAN[:3]))
            await eventually(client, lambda: client.counted("guard_queue_rows") == {(): 3})
        assert call.done()

        await eventually(client, lambda: client.counted("guard_queue_rows") == {})
        held[0].let_all_go()
        await expect_a_good_request_to_work(client)


async def test_what_comes_to_a_full_queue_is_shed_with_its_length(
    repository: Path, held: list[GatedClassifier]
) -> None:
    async with serving(repository, max_queue_rows=4, max_request_rows=4) as client:
        running = asyncio.create_task(client.infer(infer_request(CLEAN[:3])))
        await held[0].next_call()

        assert await client.refusal(infer_request(CLEAN[:2])) == (
            EXHAUSTED,
            "3 rows are waiting and 2 more came, expected at most 4 (max_queue_rows); retry later or add "
            "capacity",
        )

        held[0].let_all_go()
        assert (await running).parameters["guard_verdict"].string_param == "accept"
        await expect_a_good_request_to_work(client)
        assert client.counted("guard_shed_requests_total", "reason") == {("queue_full",): 1}
        assert client.infers_counted() == {("tiny", "RESOURCE_EXHAUSTED"): 1, ("tiny", "OK"): 2}
