"""Every request that contradicts itself or asks for what the guard does not do, and the words it gets."""

from __future__ import annotations

from typing import Any

import pytest

from guard.arrays import HELD
from guard.errors import InvalidRequestError, RequestError, UncheckableInputError, UnsupportedRequestError
from guard.rpc.codec import decode_request
from guard.rpc.pb import open_inference_pb2 as pb


def raw(datatype: str, shape: list[int], *blobs: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=blobs)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def typed(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


def with_parameter(where: str, name: str) -> pb.ModelInferRequest:
    """Return a sound request but for one parameter, of the request, its input or its output."""
    request = raw("FP32", [1], bytes(4))
    output = request.outputs.add(name="y")
    owner = {"request": request, "input": request.inputs[0], "output": output}[where]
    owner.parameters[name].int64_param = 1
    return request


def named_twice(kind: str) -> pb.ModelInferRequest:
    request = raw("FP32", [1], bytes(4))
    if kind == "input":
        request.inputs.add(name="x", datatype="FP32", shape=[1])
        request.raw_input_contents.append(bytes(4))
    else:
        request.outputs.add(name="x")
        request.outputs.add(name="x")
    return request


def raw_and_typed() -> pb.ModelInferRequest:
    request = typed("FP32", [1], fp32_contents=[1.0])
    request.raw_input_contents.append(bytes(4))
    return request


def without_value() -> pb.ModelInferRequest:
    request = raw("FP32", [1], bytes(4))
    request.parameters["guard_detail"].SetInParent()
    return request


def flooded(where: str, count: int) -> pb.ModelInferRequest:
    """Return a request with many empty elements, each of which is two bytes or little more on the wire."""
    request = raw("FP32", [1], bytes(4))
    request.outputs.add(name="y")
    if where in {"inputs", "outputs"}:
        getattr(request, where).extend([type(getattr(request, where)[0])()] * (count - 1))
        return request
    owner = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}[where]
    for number in range(count):
        owner.parameters[str(number)].SetInParent()
    return request


HUGE = 2**62
INVALID: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "short blob": (
        raw("FP32", [1, 3, 32, 32], bytes(12287)),
        "input 'x': expected 12288 bytes for FP32 [1, 3, 32, 32], got 12287 bytes",
    ),
    "long blob": (raw("INT16", [2], bytes(5)), "expected 4 bytes for INT16 [2], got 5 bytes"),
    "shape far beyond the blob": (raw("FP64", [HUGE, HUGE], bytes(8)), f"expected {8 * HUGE**2} bytes"),
    "empty shape beyond any array": (raw("FP32", [0, HUGE, 2], b""), "is too large for any array"),
    "negative dimension": (
        raw("FP32", [-1, 3], bytes(12)),
        "input 'x': expected dimensions of 0 or more, got [-1, 3]",
    ),
    "two negative dimensions": (raw("UINT8", [-1, -4], bytes(4)), "0 or more, got [-1, -4]"),
    "negative dimension, typed": (typed("FP32", [-1], fp32_contents=[1.0]), "0 or more, got [-1]"),
    "too many dimensions": (raw("UINT8", [1] * 33, bytes(1)), "expected at most 32 dimensions, got 33"),
    "blob for no input": (
        raw("FP32", [1], bytes(4), bytes(4)),
        "raw_input_contents: expected 1 blobs, one for each input, got 2",
    ),
    "raw and typed": (raw_and_typed(), "input 'x': expected either raw_input_contents or contents, got both"),
    "unknown datatype": (
        raw("FLOAT", [1], bytes(4)),
        f"input 'x': datatype 'FLOAT' is not accepted; expected one of {', '.join((*HELD, 'BYTES'))}",
    ),
    "BYTES without a length": (
        raw("BYTES", [1], b"jpeg"[:3]),
        "input 'x': element 0 of 1 ends at byte 4 of 3 bytes; before each element goes its length",
    ),
    "BYTES cut off": (
        raw("BYTES", [2], b"\x01\0\0\0a\x03\0\0\0bc"),
        "input 'x': element 1 of 2 ends at byte 12 of 11 bytes",
    ),
    "BYTES of an absurd length": (
        raw("BYTES", [1], b"\xff\xff\xff\xffa"),
        "element 0 of 1 ends at byte 4294967299 of 5 bytes",
    ),
    "BYTES and more": (
        raw("BYTES", [1, 1], b"\x01\0\0\0ab"),
        "input 'x': expected 1 elements for BYTES [1, 1], got 1 bytes behind the last of them",
    ),
    "BYTES fewer than said": (raw("BYTES", [2], b"\x01\0\0\0a"), "element 1 of 2 ends at byte 9 of 5 bytes"),
    "BYTES without elements, and bytes": (
        raw("BYTES", [0], b"a"),
        "expected 0 elements for BYTES [0], got 1",
    ),
    "BYTES by the million": (
        raw("BYTES", [1024, 1024], bytes(4 * 1024 * 1024)),
        "input 'x': expected at most 4096 elements of BYTES, got shape [1024, 1024]",
    ),
    "BYTES of negative shape": (raw("BYTES", [-1], bytes(4)), "expected dimensions of 0 or more, got [-1]"),
    "BYTES, typed, too few": (
        typed("BYTES", [2], bytes_contents=[b"jpeg"]),
        "input 'x': expected 2 elements for BYTES [2], got 1 in bytes_contents",
    ),
    "BYTES, typed, by the thousand": (
        typed("BYTES", [5000], bytes_contents=[b""] * 5000),
        "input 'x': expected at most 4096 elements of BYTES, got shape [5000]",
    ),
    "BYTES in another field": (
        typed("BYTES", [1], uint_contents=[1]),
        "input 'x': BYTES travels in contents.bytes_contents, got uint_contents",
    ),
    "BF16, typed": (
        typed("BF16", [1], fp32_contents=[1.0]),
        "input 'x': BF16 travels only in raw_input_contents; send it there",
    ),
    "BF16 in 4 bytes": (raw("BF16", [1], bytes(4)), "expected 2 bytes for BF16 [1], got 4 bytes"),
    "FP16, typed": (
        typed("FP16", [1], fp32_contents=[1.0]),
        "input 'x': FP16 travels only in raw_input_contents; send it there",
    ),
    "field of another datatype": (
        typed("INT32", [1], fp32_contents=[1.0]),
        "input 'x': INT32 travels in contents.int_contents, got fp32_contents",
    ),
    "a second field": (
        typed("FP32", [1], fp32_contents=[1.0], fp64_contents=[1.0], int_contents=[1]),
        "FP32 travels in contents.fp32_contents, got int_contents, fp64_contents",
    ),
    "too few elements": (
        typed("FP32", [2, 2], fp32_contents=[1.0] * 3),
        "input 'x': expected 4 elements for FP32 [2, 2], got 3 in fp32_contents",
    ),
    "no contents at all": (
        typed("FP32", [1, 3, 32, 32]),
        "input 'x': expected 3072 elements for FP32 [1, 3, 32, 32], got 0 in fp32_contents",
    ),
    "UINT8 above": (
        typed("UINT8", [2], uint_contents=[255, 256]),
        "input 'x': UINT8 holds 0 to 255, got 256 in uint_contents",
    ),
    "UINT16 above": (typed("UINT16", [1], uint_contents=[65536]), "UINT16 holds 0 to 65535, got 65536"),
    "INT8 below": (typed("INT8", [1], int_contents=[-129]), "INT8 holds -128 to 127, got -129"),
    "INT16 above": (typed("INT16", [1], int_contents=[2**15]), "INT16 holds -32768 to 32767, got 32768"),
    "odd boolean": (raw("BOOL", [2], b"\x01\x02"), "input 'x': a BOOL byte is 0 or 1, got 2"),
    "input twice": (named_twice("input"), "input 'x': expected each input once, got it more than once"),
    "output twice": (named_twice("output"), "output 'x': expected each output once, got it more than once"),
    "parameter without value": (without_value(), "parameter 'guard_detail' has no value"),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_request_that_contradicts_itself_is_refused_with_what_was_expected(case: str) -> None:
    request, words = INVALID[case]

    assert words in refusal(request, InvalidRequestError)


@pytest.mark.parametrize(
    ("where", "count", "words"),
    [
        ("inputs", 100_000, "inputs: expected at most 16, got 100000"),
        ("inputs", 17, "inputs: expected at most 16, got 17"),
        ("outputs", 100_000, "outputs: expected at most 64, got 100000"),
        ("outputs", 65, "outputs: expected at most 64, got 65"),
        ("request", 1_000, "parameters: expected at most 64, got 1000"),
        ("input", 1_000, "parameters of one tensor: expected at most 64, got 1000"),
        ("output", 65, "parameters of one tensor: expected at most 64, got 65"),
    ],
)
def test_a_flood_of_elements_is_refused_by_its_count(where: str, count: int, words: str) -> None:
    assert refusal(flooded(where, count), InvalidRequestError) == words


def test_a_request_id_that_would_flood_the_log_is_refused() -> None:
    request = raw("FP32", [1], bytes(4))
    request.id = "é" * 128
    assert decode_request(request).id == request.id

    request.id += "x"

    assert refusal(request, InvalidRequestError) == "id: expected at most 128 characters, got 129"


@pytest.mark.parametrize("where", ["input", "output"])
@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"])
def test_a_tensor_in_shared_memory_is_uncheckable(where: str, name: str) -> None:
    words = refusal(with_parameter(where, name), UncheckableInputError)

    assert words.startswith(
        f"{where} '{'x' if where == 'input' else 'y'}': the guard does not read shared memory"
    )
    assert words.endswith("send the tensor in the request")


def test_shared_memory_is_named_even_though_it_shifts_the_blobs() -> None:
    request = with_parameter("input", "shared_memory_region")
    request.inputs.add(name="z", datatype="FP32", shape=[1])

    assert "shared memory" in refusal(request, UncheckableInputError)


def test_output_parameters_other_than_classification_are_named() -> None:
    request = with_parameter("output", "classification")
    request.outputs[0].parameters["rounding"].int64_param = 2

    assert (
        refusal(request, UnsupportedRequestError)
        == "output 'y': parameters 'rounding' are not supported; send it without them"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("int64_param", 0),
        ("int64_param", -3),
        ("string_param", "3"),
        ("bool_param", True),
        ("double_param", 3.0),
    ],
)
def test_a_classification_that_is_no_count_of_classes_is_refused(field: str, value: object) -> None:
    request = with_parameter("output", "classification")
    setattr(request.outputs[0].parameters["classification"], field, value)

    assert refusal(request, InvalidRequestError) == (
        "output 'y': classification is the number of classes wanted, expected an int64 from 1 on, "
        f"got {value!r}"
    )


def test_a_classification_without_a_value_is_refused() -> None:
    request = with_parameter("output", "classification")
    request.outputs[0].parameters["classification"].ClearField("parameter_choice")

    assert refusal(request, InvalidRequestError).endswith("expected an int64 from 1 on, got None")


def test_an_input_cannot_be_classified() -> None:
    words = refusal(with_parameter("input", "classification"), UnsupportedRequestError)

    assert words == "input 'x': parameters 'classification' are not supported; send it without them"


@pytest.mark.parametrize("said", [11, 13, -12, None])
def test_a_size_that_is_not_that_of_the_tensor_is_refused(said: int | None) -> None:
    """Of an input of three FP32 in raw contents; who reads by it would read something else."""
    request = raw("FP32", [3], bytes(12))
    if said is None:
        request.inputs[0].parameters["binary_data_size"].string_param = "12"
    else:
        request.inputs[0].parameters["binary_data_size"].int64_param = said

    words = refusal(request, InvalidRequestError)

    expected = "input 'x': binary_data_size: expected the size of its raw contents, 12 bytes"
    assert words == f"{expected}, got {said}; leave it out"


def test_a_size_of_raw_contents_that_are_not_there_is_refused() -> None:
    request = typed("FP32", [1], fp32_contents=[1.0])
    request.inputs[0].parameters["binary_data_size"].int64_param = 4

    assert "of which there are none" in refusal(request, InvalidRequestError)


def test_the_size_that_a_tensor_has_changes_nothing() -> None:
    request = raw("FP32", [3], bytes(12))
    request.inputs[0].parameters["binary_data_size"].int64_param = 12

    assert decode_request(request).inputs[0].data.tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_input_parameter_is_named() -> None:
    words = refusal(with_parameter("input", "content_type"), UnsupportedRequestError)

    assert words == "input 'x': parameters 'content_type' are not supported; send it without them"


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
def test_sequences_are_refused_because_nothing_is_kept_between_requests(name: str) -> None:
    words = refusal(with_parameter("request", name), UnsupportedRequestError)

    assert words.startswith(
        f"request parameter '{name}' is not supported: the guard checks each request by itself"
    )


def test_an_unknown_request_parameter_is_named_with_those_supported() -> None:
    assert refusal(with_parameter("request", "temperature"), UnsupportedRequestError) == (
        "request parameter 'temperature' is not supported; supported: guard_*, and without effect: "
        "priority, timeout, headers, binary_data_output, triton_enable_empty_final_response"
    )


def refusal(request: pb.ModelInferRequest, error: type[RequestError]) -> str:
    """Return the words with which a request is refused, as it would come over the wire."""
    with pytest.raises(error) as refused:
        decode_request(pb.ModelInferRequest.FromString(request.SerializeToString()))
    assert type(refused.value) is error
    return str(refused.value)
