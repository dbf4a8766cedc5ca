"""``config.pbtxt``: what Triton is told of an exported model, written from Triton's own message types."""

from __future__ import annotations

from typing import Final, Literal

from google.protobuf import text_format

from guard.artifact import Profile
from guard.errors import ArtifactError
from guard.export.judgement import P_VALUE, SCORE, VERDICT
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["CONFIG_NAME", "Backend", "check_same_contract", "config_text"]

CONFIG_NAME: Final = "config.pbtxt"

Backend = Literal["onnxruntime", "python"]

_TYPES = {"FP32": pb.TYPE_FP32, "FP16": pb.TYPE_FP16, "UINT8": pb.TYPE_UINT8}
_FORMATS = {"NCHW": pb.ModelInput.FORMAT_NCHW, "NHWC": pb.ModelInput.FORMAT_NHWC}
_QUEUE_DELAY_US = 500
_CONTRACT = ("backend", "max_batch_size", "input", "output")

_HEAD = """\
Written by `guard export triton`; later exports of the same model leave it as it is, your changes with it.
An image costs 1 + N passes of the model, N the number of overlays in guard.json."""
_BATCHING = """\
Rows never affect one another's verdicts, so Triton may put requests together. A longer delay fills larger
batches; leave the section out to run every request by itself."""
_INSTANCES = """\
A GPU where there is one. Each instance holds the model and the overlays in memory once more."""


def config_text(name: str, profile: Profile, *, backend: Backend, max_batch_size: int) -> str:
    """Return the text of a model's ``config.pbtxt``.

    Args:
        name: Name of the model in Triton.
        profile: Profile of the artifact.
        backend: What runs the graph: Triton's ``onnxruntime`` backend, or ``python`` with the ``model.py``
            beside the graph.
        max_batch_size: Most rows of a batch; without meaning for a model with a fixed batch, which gets 0,
            Triton's word for a batch axis that is part of the shape.
    """
    head = _tensors(name, profile, backend, 0 if profile.fixed_batch else max_batch_size)
    sections = [_commented(_HEAD, head)]
    if not profile.fixed_batch:
        batching = pb.ModelConfig()
        batching.dynamic_batching.max_queue_delay_microseconds = _QUEUE_DELAY_US
        sections.append(_commented(_BATCHING, batching))
    instances = pb.ModelConfig()
    instances.instance_group.add(count=1)
    sections.append(_commented(_INSTANCES, instances))
    return "\n".join(sections)


def check_same_contract(present: str, ours: str, where: str) -> None:
    """See that an existing configuration fits what is exported now; what else it says is its owner's.

    Args:
        present: Text of the configuration that is there.
        ours: Text that this export would write.
        where: Its path, for errors.

    Raises:
        ArtifactError: If it cannot be read, or has another backend, batch limit, input or output.
    """
    expected = text_format.Parse(ours, pb.ModelConfig())
    try:
        actual = text_format.Parse(present, pb.ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise ArtifactError(f"{where} cannot be read ({error}); mend it, or take another --name") from error
    for field in _CONTRACT:
        if getattr(actual, field) != getattr(expected, field):
            raise ArtifactError(
                f"{where} has another {field} than this export, and clients rely on it; expected "
                f"{_one_line(expected, field)}, got {_one_line(actual, field)}: take another --name or "
                f"--out, or give the flags that the earlier versions were exported with"
            )


def _tensors(name: str, profile: Profile, backend: Backend, max_batch_size: int) -> pb.ModelConfig:
    source, sink = profile.input, profile.output
    batch = [profile.fixed_batch] if profile.fixed_batch else []
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    config.input.add(
        name=source.name,
        data_type=_TYPES[source.datatype],
        format=pb.ModelInput.FORMAT_NONE if batch else _FORMATS[source.layout],
        dims=[*batch, *source.shape],
    )
    config.output.add(name=sink.name, data_type=_TYPES[sink.datatype], dims=[*batch, sink.classes])
    config.output.add(name=SCORE, data_type=pb.TYPE_FP32, dims=[*batch, 1])
    config.output.add(name=VERDICT, data_type=pb.TYPE_STRING, dims=[*batch, 1])
    config.output.add(name=P_VALUE, data_type=pb.TYPE_FP32, dims=[*batch, 1])
    return config


def _commented(comment: str, config: pb.ModelConfig) -> str:
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + text_format.MessageToString(config, use_short_repeated_primitives=True)


def _one_line(config: pb.ModelConfig, field: str) -> str:
    value = getattr(config, field)
    if isinstance(value, str | int):
        return repr(value)
    return "[" + ", ".join(text_format.MessageToString(part, as_one_line=True) for part in value) + "]"
