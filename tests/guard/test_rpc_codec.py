"""Requests and answers survive the wire: raw, typed, parameters, descriptions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.arrays import DATATYPES, HELD
from guard.messages import InferResponse, ModelDescription, ServerDescription, Tensor, TensorSpec
from guard.rpc.codec import decode_request, encode_config, encode_metadata, encode_response, encode_server
from guard.rpc.parameters import add_parameters, decode_parameters
from guard.rpc.pb import open_inference_pb2 as pb

FIELD_OF = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Datatype → typed field, as the protocol's specification lists them."""

GTSRB = ModelDescription(
    name="gtsrb",
    versions=("3",),
    platform="onnxruntime_onnx",
    backend="onnxruntime",
    max_batch_size=64,
    inputs=(TensorSpec("image", "FP32", (-1, 3, 32, 32)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 43)), TensorSpec("label", "BYTES", (-1, 1))),
)


@st.composite
def tensors(draw: st.DrawFn, datatypes: tuple[str, ...]) -> Tensor:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    data = draw(hnp.arrays(DATATYPES[datatype], shape))
    return Tensor(draw(st.text(max_size=8)), datatype, data)


def as_raw(*given_tensors: Tensor) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="gtsrb")
    for tensor in given_tensors:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
        request.raw_input_contents.append(tensor.data.tobytes())
    return request


@settings(max_examples=60)
@given(st.lists(tensors(tuple(DATATYPES)), max_size=3, unique_by=lambda tensor: tensor.name))
def test_raw_inputs_decode_to_the_arrays_they_were_made_of(sent: list[Tensor]) -> None:
    request = pb.ModelInferRequest.FromString(as_raw(*sent).SerializeToString())

    got = decode_request(request).inputs

    assert [(tensor.name, tensor.datatype) for tensor in got] == [(t.name, t.datatype) for t in sent]
    for tensor, original in zip(got, sent, strict=True):
        assert tensor.data.dtype == original.data.dtype
        assert tensor.data.shape == original.data.shape
        assert tensor.data.tobytes() == original.data.tobytes()


@settings(max_examples=60)
@given(tensors(tuple(FIELD_OF)))
def test_typed_inputs_decode_to_the_arrays_they_were_made_of(sent: Tensor) -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name=sent.name, datatype=sent.datatype, shape=sent.data.shape)
    getattr(tensor.contents, FIELD_OF[sent.datatype]).extend(sent.data.ravel().tolist())

    (got,) = decode_request(pb.ModelInferRequest.FromString(request.SerializeToString())).inputs

    assert got.data.dtype == sent.data.dtype
    np.testing.assert_array_equal(got.data, sent.data)


@settings(max_examples=60)
@given(st.lists(tensors(tuple(DATATYPES)), max_size=3))
def test_an_answer_carries_its_outputs_raw_and_in_their_order(outputs: list[Tensor]) -> None:
    wire = encode_response(InferResponse("gtsrb", "3", "id-7", tuple(outputs)))

    assert (wire.model_name, wire.model_version, wire.id) == ("gtsrb", "3", "id-7")
    assert [output.name for output in wire.outputs] == [tensor.name for tensor in outputs]
    assert [tuple(output.shape) for output in wire.outputs] == [tensor.data.shape for tensor in outputs]
    assert list(wire.raw_output_contents) == [tensor.data.tobytes() for tensor in outputs]
    assert not any(output.HasField("contents") for output in wire.outputs)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.booleans() | st.text() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1),
    )
)
@settings(max_examples=60)
def test_parameters_keep_value_and_type_both_ways(parameters: dict[str, bool | int | float | str]) -> None:
    message = pb.ModelInferResponse()
    add_parameters(message.parameters, parameters)
    got = decode_parameters(message.parameters)

    assert got == parameters
    assert {name: type(value) for name, value in got.items()} == {n: type(v) for n, v in parameters.items()}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_an_integer_beyond_64_bits_has_no_wire_form(value: int) -> None:
    with pytest.raises(ValueError, match=f"'n': expected an integer of 64 bits, got {value}"):
        add_parameters(pb.ModelInferResponse().parameters, {"n": value})


def test_raw_decoding_reads_the_blob_in_place() -> None:
    (tensor,) = decode_request(as_raw(Tensor("image", "FP32", np.ones((2, 3), np.float32)))).inputs

    assert not tensor.data.flags.owndata
    assert not tensor.data.flags.writeable


def test_names_version_id_deadline_and_our_parameters_are_passed_on() -> None:
    request = as_raw(Tensor("image", "UINT8", np.zeros(1, np.uint8)))
    request.model_version, request.id = "3", "id-7"
    request.outputs.add(name="logits").parameters["binary_data"].bool_param = True
    request.outputs.add(name="label")
    request.parameters["guard_detail"].bool_param = True

    got = decode_request(request, timeout_s=1.5)

    assert (got.model_name, got.model_version, got.id, got.timeout_s) == ("gtsrb", "3", "id-7", 1.5)
    assert got.outputs == ("logits", "label")
    assert got.parameters == {"guard_detail": True}


@pytest.mark.parametrize(
    "name", ["priority", "timeout", "headers", "binary_data_output", "triton_enable_empty_final_response"]
)
def test_a_reserved_parameter_without_meaning_here_is_ignored(name: str) -> None:
    request = as_raw()
    request.parameters[name].int64_param = 1

    assert dict(decode_request(request).parameters) == {}


def test_an_empty_batch_needs_no_contents() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="image", datatype="FP32", shape=[0, 3, 32, 32])

    assert decode_request(request).inputs[0].data.shape == (0, 3, 32, 32)


def test_big_endian_and_strided_arrays_are_sent_little_endian_and_row_major() -> None:
    data = np.array([[1, 2, 3], [4, 5, 6]], ">i4").T

    (blob,) = encode_response(InferResponse("m", "1", "", (Tensor("x", "INT32", data),))).raw_output_contents

    assert blob == np.array([[1, 4], [2, 5], [3, 6]], "<i4").tobytes()


def test_strings_are_sent_each_behind_its_length() -> None:
    verdicts = Tensor("guard_verdict", "BYTES", np.array(["accept", "flag", ""], np.bytes_))

    wire = encode_response(InferResponse("m", "1", "", (verdicts,)))

    assert list(wire.outputs[0].shape) == [3]
    assert wire.raw_output_contents[0] == b"\x06\0\0\0accept\x04\0\0\0flag\0\0\0\0"


def test_an_output_of_another_dtype_than_it_claims_is_not_sent() -> None:
    answer = InferResponse("m", "1", "", (Tensor("x", "FP32", np.zeros(1)),))

    with pytest.raises(
        ValueError, match="output 'x': expected an array of the datatype FP32, got dtype float64"
    ):
        encode_response(answer)


def test_metadata_keeps_the_batch_dimension() -> None:
    wire = encode_metadata(GTSRB)

    assert (wire.name, list(wire.versions), wire.platform) == ("gtsrb", ["3"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in wire.inputs] == [("image", "FP32", [-1, 3, 32, 32])]
    assert [(t.name, t.datatype, list(t.shape)) for t in wire.outputs] == [
        ("logits", "FP32", [-1, 43]),
        ("label", "BYTES", [-1, 1]),
    ]


def test_the_configuration_leaves_the_batch_dimension_out() -> None:
    wire = encode_config(GTSRB)

    assert (wire.name, wire.platform, wire.backend) == ("gtsrb", "onnxruntime_onnx", "onnxruntime")
    assert wire.max_batch_size == 64
    assert [list(tensor.dims) for tensor in (*wire.input, *wire.output)] == [[3, 32, 32], [43], [1]]
    assert [tensor.data_type for tensor in wire.output] == [pb.TYPE_FP32, pb.TYPE_STRING]
    assert wire.input[0].format == pb.ModelInput.FORMAT_NONE
    assert not wire.HasField("version_policy")


def test_the_configuration_of_a_model_without_batches_keeps_every_dimension() -> None:
    model = ModelDescription("m", ("1",), "p", "b", 0, (TensorSpec("x", "UINT8", (28, 28)),), ())

    assert list(encode_config(model).input[0].dims) == [28, 28]


@pytest.mark.parametrize("datatype", sorted(HELD))
def test_every_datatype_has_a_name_in_the_configuration(datatype: str) -> None:
    model = ModelDescription("m", ("1",), "p", "b", 0, (TensorSpec("x", datatype, (1,)),), ())

    assert pb.DataType.Name(encode_config(model).input[0].data_type) == f"TYPE_{datatype}"


def test_server_metadata_has_name_version_and_extensions() -> None:
    wire = encode_server(ServerDescription("guard", "0.1.0", ("model_configuration",)))

    assert (wire.name, wire.version, list(wire.extensions)) == ("guard", "0.1.0", ["model_configuration"])
