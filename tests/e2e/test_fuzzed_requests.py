"""Random changes to a good request: the caller is told what is wrong with it, never that we do not know."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.arrays import DATATYPES
from guard.rpc.pb import open_inference_pb2 as pb
from guard.server import GuardServer
from tests.artifacts import write_tiny_artifact
from tests.reference_check import images_and_boundary
from tests.serving import PATIENCE_S, infer_request, settings_for

# The server runs in a thread of this process, and the type checker that is on while tests run draws random
# numbers there; hypothesis takes that for a strategy that does.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()
IMAGES = np.concatenate([CLEAN[:1], SUSPICIOUS[:1]])
WHAT_A_CALLER_MAY_BE_TOLD = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
Infer = Callable[[bytes], tuple[grpc.StatusCode, str]]
Change = Callable[[pb.ModelInferRequest], None]

TEXT = st.text(max_size=12) | st.sampled_from(["tiny", "images", "logits", "guard_verdict", "1", "é\n\x00"])
NAMES = TEXT | st.sampled_from(["shared_memory_region", "sequence_id", "priority", "guard_x", "binary_data"])
SIZES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=40) | st.just([2, 3, 8, 8])
DATATYPE = st.sampled_from([*DATATYPES, "BYTES", "BF16", ""]) | TEXT
FLOATS = st.lists(st.floats(width=32), max_size=8)
INT32 = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8)
UINT32 = st.lists(st.integers(0, 2**32 - 1), max_size=8)
INT64 = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8)


@st.composite
def parameter_changes(draw: st.DrawFn) -> Change:
    name = draw(NAMES)
    field, value = draw(
        st.tuples(st.just("string_param"), TEXT)
        | st.tuples(st.just("bool_param"), st.booleans())
        | st.tuples(st.just("int64_param"), st.integers(-(2**63), 2**63 - 1))
        | st.tuples(st.just("double_param"), st.floats())
        | st.just(("", None))
    )
    where = draw(st.sampled_from(["request", "input", "output"]))

    def change(request: pb.ModelInferRequest) -> None:
        output = request.outputs[0] if request.outputs else request.outputs.add(name="logits")
        holder = {"request": request, "input": first_input(request), "output": output}[where]
        parameter = holder.parameters[name]
        if field:
            setattr(parameter, field, value)

    return change


@st.composite
def typed_changes(draw: st.DrawFn) -> Change:
    field, values = draw(
        st.tuples(st.just("fp32_contents"), FLOATS)
        | st.tuples(st.just("fp64_contents"), st.lists(st.floats(), max_size=8))
        | st.tuples(st.just("int_contents"), INT32)
        | st.tuples(st.just("uint_contents"), UINT32)
        | st.tuples(st.just("int64_contents"), INT64)
        | st.tuples(st.just("bool_contents"), st.lists(st.booleans(), max_size=8))
        | st.tuples(st.just("bytes_contents"), st.lists(st.binary(max_size=4), max_size=4))
    )
    keep_raw = draw(st.booleans())

    def change(request: pb.ModelInferRequest) -> None:
        getattr(first_input(request).contents, field).extend(values)
        if not keep_raw:
            del request.raw_input_contents[:]

    return change


@st.composite
def raw_changes(draw: st.DrawFn) -> Change:
    at, noise = draw(st.integers(0, 2**16)), draw(st.binary(max_size=8))
    cut = draw(st.booleans())

    def change(request: pb.ModelInferRequest) -> None:
        if not request.raw_input_contents:
            request.raw_input_contents.append(b"")
        blob = request.raw_input_contents[0]
        start = at % (len(blob) + 1)
        request.raw_input_contents[0] = (
            blob[:start] + noise if cut else blob[:start] + noise + blob[start + len(noise) :]
        )

    return change


def first_input(request: pb.ModelInferRequest) -> pb.ModelInferRequest.InferInputTensor:
    return request.inputs[0] if request.inputs else request.inputs.add(name="images")


def field_changes() -> st.SearchStrategy[Change]:
    return (
        TEXT.map(lambda text: lambda request: setattr(request, "model_name", text))
        | TEXT.map(lambda text: lambda request: setattr(request, "model_version", text))
        | TEXT.map(lambda text: lambda request: setattr(request, "id", text))
        | TEXT.map(lambda text: lambda request: setattr(first_input(request), "name", text))
        | DATATYPE.map(lambda text: lambda request: setattr(first_input(request), "datatype", text))
        | SIZES.map(lambda sizes: lambda request: first_input(request).shape.__setitem__(slice(None), sizes))
        | NAMES.map(lambda name: lambda request: request.outputs.add(name=name))
        | NAMES.map(lambda name: lambda request: request.inputs.add(name=name, datatype="FP32", shape=[1]))
        | st.just(lambda request: request.raw_input_contents.append(b"\0\0\0\0"))
        | st.just(lambda request: request.inputs.pop() if request.inputs else None)
        | st.just(lambda request: request.ClearField("raw_input_contents"))
    )


CHANGES = field_changes() | parameter_changes() | typed_changes() | raw_changes()


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infer]:
    """Send bytes to a server that runs beside the tests, in a thread of its own."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_artifact(root, boundary_bits=BOUNDARY)
    started, stop = threading.Event(), asyncio.Event()
    server = GuardServer(settings_for(root))
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        await server.start()
        started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(PATIENCE_S)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        def send(message: bytes) -> tuple[grpc.StatusCode, str]:
            try:
                pb.ModelInferResponse.FromString(call(message, timeout=PATIENCE_S))
            except grpc.RpcError as error:
                return error.code(), error.details()
            return grpc.StatusCode.OK, ""

        yield send
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def expect_words_and_a_server_that_lives_on(infer: Infer, message: bytes) -> None:
    code, words = infer(message)
    assert code in WHAT_A_CALLER_MAY_BE_TOLD, words
    assert (words == "") is (code is grpc.StatusCode.OK)
    assert infer(infer_request(CLEAN[:1]).SerializeToString()) == (grpc.StatusCode.OK, "")


@settings(max_examples=100)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_a_request_with_random_fields_never_ends_in_an_unknown_error(
    infer: Infer, changes: list[Change]
) -> None:
    request = infer_request(IMAGES, id="fuzz")
    for change in changes:
        change(request)

    expect_words_and_a_server_that_lives_on(infer, request.SerializeToString())


@settings(max_examples=80)
@given(
    at=st.lists(st.integers(0, 2**12), min_size=1, max_size=4),
    noise=st.binary(min_size=1, max_size=6),
    kind=st.sampled_from(["overwrite", "insert", "cut"]),
)
def test_random_bytes_in_a_message_never_end_in_an_unknown_error(
    infer: Infer, at: list[int], noise: bytes, kind: str
) -> None:
    # The blob is left out, so that most of what is changed is structure.
    request = infer_request(IMAGES, id="fuzz")
    request.outputs.add(name="guard_verdict")
    request.raw_input_contents[0] = b""
    message = bytearray(request.SerializeToString())
    for place in at:
        start = place % (len(message) + 1)
        if kind == "cut":
            del message[start:]
        else:
            message[start : start + (len(noise) if kind == "overwrite" else 0)] = noise

    expect_words_and_a_server_that_lives_on(infer, bytes(message))


@settings(max_examples=30)
@given(message=st.binary(max_size=64))
def test_bytes_that_are_no_request_never_end_in_an_unknown_error(infer: Infer, message: bytes) -> None:
    expect_words_and_a_server_that_lives_on(infer, message)


def test_the_good_request_is_refused_only_for_its_trigger(infer: Infer) -> None:
    code, words = infer(infer_request(IMAGES).SerializeToString())

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert words.startswith("rejected: row 1 of 2 looks triggered")


def test_words_stay_short_and_readable_whatever_a_caller_puts_into_names(
    infer: Infer, tmp_path: Path
) -> None:
    code, words = infer(infer_request(IMAGES, model="\n\x00é" * 10_000).SerializeToString())

    assert code is grpc.StatusCode.NOT_FOUND
    assert words.startswith(r"model '\n\x00é\n\x00é")
    assert len(words) <= 2001
