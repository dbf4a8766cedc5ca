"""What numpy has no dtype for, elements of any length and bfloat16; and what is asked of outputs."""

from __future__ import annotations

import ml_dtypes  # onnx brings it; the guard itself does without
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.arrays import from_bfloat16, held, to_bfloat16
from guard.errors import InvalidRequestError
from guard.messages import InferResponse, Tensor
from guard.rpc.codec import decode_request, encode_response
from guard.rpc.contents import decode_raw, decode_typed
from guard.rpc.pb import open_inference_pb2 as pb


def request_of(datatype: str, shape: tuple[int, ...], *blobs: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=blobs)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def lengths_and_elements(elements: list[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=20), max_size=9), st.booleans(), st.booleans())
def test_bytes_come_out_as_they_went_in(elements: list[bytes], column: bool, raw: bool) -> None:
    shape = (len(elements), 1) if column else (len(elements),)
    if raw:
        request = request_of("BYTES", shape, lengths_and_elements(elements))
    else:
        request = request_of("BYTES", shape)
        request.inputs[0].contents.bytes_contents.extend(elements)

    (got,) = decode_request(pb.ModelInferRequest.FromString(request.SerializeToString())).inputs

    assert got.datatype == "BYTES"
    assert got.data.shape == shape
    assert got.data.ravel().tolist() == elements


@settings(max_examples=60)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)))
def test_bfloat16_comes_out_as_the_float32_that_it_is(bits: np.ndarray) -> None:
    request = request_of("BF16", bits.shape, bits.astype("<u2").tobytes())

    (got,) = decode_request(request).inputs

    assert (got.datatype, got.data.dtype, got.data.shape) == ("BF16", np.float32, bits.shape)
    np.testing.assert_array_equal(got.data, bits.view(ml_dtypes.bfloat16).astype(np.float32))


@settings(max_examples=100)
@given(hnp.arrays(np.float32, 8, elements=st.floats(width=32)))
def test_float32_is_rounded_to_bfloat16_as_others_do(values: np.ndarray) -> None:
    ours, theirs = from_bfloat16(to_bfloat16(values)), values.astype(ml_dtypes.bfloat16).astype(np.float32)

    np.testing.assert_array_equal(ours, theirs)


def test_an_output_of_bfloat16_leaves_in_two_bytes_an_element() -> None:
    values = held(np.array([[1.0, -2.5, 3.1415927]], np.float32), "BF16")

    wire = encode_response(InferResponse("m", "1", "", (Tensor("y", "BF16", values),)))

    assert wire.outputs[0].datatype == "BF16"
    assert np.frombuffer(wire.raw_output_contents[0], ml_dtypes.bfloat16).tolist() == [1.0, -2.5, 3.140625]


def test_a_classification_is_kept_beside_the_name_of_its_output() -> None:
    request = request_of("FP32", (1,), bytes(4))
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3
    request.outputs.add(name="guard_score")

    decoded = decode_request(request)

    assert decoded.outputs == ("logits", "guard_score")
    assert dict(decoded.classifications) == {"logits": 3}


@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
def test_a_classification_may_come_in_either_field_of_integers(field: str) -> None:
    request = request_of("FP32", (1,), bytes(4))
    setattr(request.outputs.add(name="y").parameters["classification"], field, 2**40)

    assert dict(decode_request(request).classifications) == {"y": 2**40}


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "FP16"])
def test_an_empty_tensor_of_a_shape_that_no_array_can_have_is_refused(datatype: str) -> None:
    shape = [0, 2**61]  # of elements that may be held in more bytes than they have on the wire

    with pytest.raises(InvalidRequestError, match="is too large for any array"):
        decode_raw("x", datatype, shape, b"")


def test_typed_bytes_may_not_have_such_a_shape_either() -> None:
    with pytest.raises(InvalidRequestError, match="is too large for any array"):
        decode_typed("x", "BYTES", [0, 2**61], pb.InferTensorContents())
