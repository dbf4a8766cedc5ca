"""Open Inference Protocol messages into the guard's own, and back. Pure: no call, no I/O, no state.

A request is refused here for what is wrong with it whatever the model is; whether it fits the model
is for the data plane to say. Answers are always raw, in the order the data plane gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from guard.dataplane.answer import GUARD_OUTPUTS
from guard.errors import InvalidRequestError
from guard.messages import (
    InferRequest,
    InferResponse,
    Metadata,
    ModelDescription,
    Original,
    Reading,
    Relayed,
    ServerDescription,
    Tensor,
    TensorSpec,
)
from guard.rpc.contents import decode_raw, decode_typed, encode_raw, encode_typed
from guard.rpc.form import OF_CLASSIFIERS, has_unknown_fields, refuse_excess
from guard.rpc.parameters import (
    SIZE,
    add_parameters,
    classification_of,
    own_parameters,
    refuse_shared_memory,
    refuse_tensor_parameters,
    refuse_wrong_size,
)
from guard.rpc.passed import decode_passed
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["decode_request", "encode_config", "encode_metadata", "encode_response", "encode_server"]


def decode_request(
    request: pb.ModelInferRequest,
    *,
    timeout_s: float | None = None,
    client: str = "",
    message: bytes = b"",
    metadata: Metadata = (),
    read: Reading = Reading.TENSORS,
) -> InferRequest:
    """Return what a ModelInfer request asks for; input arrays are read-only views of the message's bytes.

    Args:
        request: As it came.
        timeout_s: Seconds that the caller still waits, None for no deadline.
        client: Address that it came from.
        message: The bytes it was read from, where they are to be kept; empty where not.
        metadata: What came beside them.
        read: How far it is looked into.

    Raises:
        InvalidRequestError: If the message contradicts itself (shapes, byte counts, names twice), or
            holds more inputs, outputs or parameters, or a longer id, than any request has use for.
        UncheckableInputError: If a tensor lies in shared memory.
        UnsupportedRequestError: If a parameter asks for something the guard does not do.
    """
    if read is Reading.NOTHING:
        return decode_passed(request, timeout_s=timeout_s, client=client, message=message, metadata=metadata)
    refuse_excess(request, OF_CLASSIFIERS)
    wanted = read is Reading.TENSORS
    parameters = own_parameters(request.parameters)
    asked = [(output.name, _classification(output)) for output in request.outputs]
    outputs = tuple([name for name, _ in asked])
    _refuse_repeats("output", outputs)
    return InferRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        inputs=_decode_inputs(request) if wanted else (),
        unread=None if wanted else _named_inputs(request),
        outputs=outputs,
        classifications=MappingProxyType({name: count for name, count in asked if count is not None}),
        parameters=MappingProxyType(parameters),
        timeout_s=timeout_s,
        client=client,
        original=Original(message, metadata, not has_unknown_fields(request)) if message else None,
    )


def encode_response(response: InferResponse) -> pb.ModelInferResponse:
    """Return the wire form of an answer, its tensors as raw contents.

    Raises:
        ValueError: If an output's array is not of the datatype it claims.
    """
    if response.relayed is not None:
        return _add_to_relayed(response, response.relayed)
    answer = pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        raw_output_contents=[encode_raw(tensor) for tensor in response.outputs],
    )
    for tensor in response.outputs:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
    add_parameters(answer.parameters, response.parameters)
    return answer


def encode_server(server: ServerDescription) -> pb.ServerMetadataResponse:
    """Return the answer to ServerMetadata."""
    return pb.ServerMetadataResponse(name=server.name, version=server.version, extensions=server.extensions)


def encode_metadata(model: ModelDescription) -> pb.ModelMetadataResponse:
    """Return the answer to ModelMetadata; shapes keep their leading -1."""
    if model.metadata:
        said = pb.ModelMetadataResponse.FromString(model.metadata)
        said.name = model.name
        said.versions[:] = model.versions
        return said
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=model.versions,
        platform=model.platform,
        inputs=[_encode_spec(spec) for spec in model.inputs],
        outputs=[_encode_spec(spec) for spec in model.outputs],
    )


def encode_config(model: ModelDescription) -> pb.ModelConfig:
    """Return the configuration Triton would give; dims lose the batch when ``max_batch_size`` is above 0."""
    if model.config:
        said = pb.ModelConfig.FromString(model.config)
        said.name = model.name
        return said
    return pb.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=model.backend,
        max_batch_size=model.max_batch_size,
        input=[
            pb.ModelInput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec, model))
            for spec in model.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec, model))
            for spec in model.outputs
        ],
    )


def _add_to_relayed(response: InferResponse, relayed: Relayed) -> pb.ModelInferResponse:
    """Return a model server's answer as it is, with the guard's outputs and parameters added to it."""
    answer = pb.ModelInferResponse.FromString(relayed.message)
    answer.model_name = response.model_name
    if not relayed.with_outputs:
        del answer.outputs[:], answer.raw_output_contents[:]
    _drop_pretended_findings(answer)
    typed = bool(answer.outputs) and not answer.raw_output_contents
    for tensor in response.outputs:
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
        if typed:
            output.contents.CopyFrom(encode_typed(tensor))
        else:
            answer.raw_output_contents.append(encode_raw(tensor))
    add_parameters(answer.parameters, response.parameters)
    return answer


def _drop_pretended_findings(answer: pb.ModelInferResponse) -> None:
    """Take out of a model server's answer what would read as a finding: nobody else speaks for the guard."""
    for name in [name for name in answer.parameters if name.startswith("guard_")]:
        del answer.parameters[name]
    raw = bool(answer.raw_output_contents)
    for index in reversed(range(len(answer.outputs))):
        if answer.outputs[index].name in GUARD_OUTPUTS:
            del answer.outputs[index]
            if raw:
                del answer.raw_output_contents[index : index + 1]


def _named_inputs(request: pb.ModelInferRequest) -> tuple[TensorSpec, ...]:
    """Return what the input tensors are said to be."""
    inputs = tuple([TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in request.inputs])
    for place, tensor in enumerate(request.inputs):
        if tensor.parameters:
            _refuse_parameters(request, place)
    _refuse_repeats("input", [one.name for one in inputs])
    return inputs


def _refuse_parameters(request: pb.ModelInferRequest, place: int) -> None:
    """Refuse what is said of an input besides its tensor, unless it changes nothing."""
    tensor, blobs = request.inputs[place], request.raw_input_contents
    name = f"input {tensor.name!r}"
    refuse_shared_memory(name, tensor.parameters)
    refuse_wrong_size(name, tensor.parameters, len(blobs[place]) if place < len(blobs) else None)
    refuse_tensor_parameters(name, (one for one in tensor.parameters if one != SIZE))


def _decode_inputs(request: pb.ModelInferRequest) -> tuple[Tensor, ...]:
    """Return the input tensors, from raw contents if there are any and from typed ones otherwise."""
    inputs, blobs = _named_inputs(request), request.raw_input_contents
    arrays = _decode_all_raw(request, inputs, blobs) if blobs else _decode_all_typed(request, inputs)
    return tuple([Tensor(one.name, one.datatype, data) for one, data in zip(inputs, arrays, strict=True)])


def _decode_all_raw(
    request: pb.ModelInferRequest, inputs: tuple[TensorSpec, ...], blobs: Sequence[bytes]
) -> list[np.ndarray]:
    """Return one array for each input from its blob, which are in the same order."""
    if len(blobs) != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents: expected {len(inputs)} blobs, one for each input, got {len(blobs)}"
        )
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidRequestError(
                f"input {tensor.name!r}: expected either raw_input_contents or contents, got both"
            )
    return [
        decode_raw(one.name, one.datatype, one.shape, blob) for one, blob in zip(inputs, blobs, strict=True)
    ]


def _decode_all_typed(request: pb.ModelInferRequest, inputs: tuple[TensorSpec, ...]) -> list[np.ndarray]:
    """Return one array for each input from its typed contents."""
    return [
        decode_typed(one.name, one.datatype, one.shape, tensor.contents)
        for one, tensor in zip(inputs, request.inputs, strict=True)
    ]


def _classification(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int | None:
    """Return how many classes are asked for in an output's place, refusing anything else asked of it."""
    if not output.parameters:
        return None
    refuse_shared_memory(f"output {output.name!r}", output.parameters)
    count = classification_of(f"output {output.name!r}", output.parameters)
    if count is not None and output.name in GUARD_OUTPUTS:
        raise InvalidRequestError(
            f"output {output.name!r} holds no class scores, so 'classification' cannot be asked of it; "
            f"leave it out"
        )
    return count


def _refuse_repeats(kind: str, names: Sequence[str]) -> None:
    """Refuse a name that comes twice: which of the two is meant would be a guess."""
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidRequestError(f"{kind} {twice[0]!r}: expected each {kind} once, got it more than once")


def _encode_spec(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    """Return a tensor's description as ModelMetadata has it."""
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _data_type(spec: TensorSpec) -> str:
    """Return the datatype as ModelConfig has it, where BYTES is called a string."""
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _dims(spec: TensorSpec, model: ModelDescription) -> tuple[int, ...]:
    """Return a shape as ModelConfig has it, whose batch dimension is implied by max_batch_size."""
    return spec.shape[1:] if model.max_batch_size > 0 else spec.shape
