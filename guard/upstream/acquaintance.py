"""Is the model on a server the one that was calibrated?

A check says something of the answer only if both come from the same network. So a server is asked, before it
gets any request and again whenever it was away or says something else of its model, for what it takes and
gives and for its answers to the images that were stored at calibration.
"""

from __future__ import annotations

import numpy as np

from guard.arrays import DATATYPES, Images
from guard.artifact import Profile
from guard.errors import UpstreamError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.runtime.probing import check_logits
from guard.upstream.link import Address
from guard.upstream.predictor import Predictor

__all__ = ["check_answers", "check_metadata"]


def check_metadata(metadata: pb.ModelMetadataResponse, profile: Profile, address: Address) -> None:
    """Compare what a server says of its model with what was calibrated; one that names no tensors passes.

    Raises:
        UpstreamError: If the model takes anything beside the images, or the tensors differ.
    """
    source, sink = profile.input, profile.output
    inputs = [(tensor.name, tensor.datatype) for tensor in metadata.inputs]
    if inputs and inputs != [(source.name, source.datatype)]:
        raise _differs(address, f"takes {inputs}", f"{[(source.name, source.datatype)]}")
    outputs = {tensor.name: tensor for tensor in metadata.outputs}
    if outputs and sink.name not in outputs:
        raise _differs(address, f"gives {sorted(outputs)}", f"{sink.name!r}")
    for tensor in metadata.inputs:
        _check_row(tensor, list(source.shape), address)
    if outputs:
        _check_row(outputs[sink.name], [sink.classes], address)


async def check_answers(predictor: Predictor, model: LoadedModel, address: Address) -> str:
    """Compare a server's answers with those at calibration; without a probe only their form.

    Returns:
        The version that answered; empty where the server does not say.

    Raises:
        ProbeError: If it answers otherwise.
        UpstreamError: If it answers with something else, or in several versions.
    """
    probe = model.probe
    logits, versions = await predictor.answers(probe.images if probe else _gray(model.profile))
    if probe is not None:
        check_logits(logits, probe, str(address))
    if len(versions) > 1:
        raise UpstreamError(
            f"{address} answers in the versions {sorted(versions)}; set upstream_version to one"
        )
    return versions.pop()


def _check_row(tensor: pb.ModelMetadataResponse.TensorMetadata, row: list[int], address: Address) -> None:
    there = list(tensor.shape)[-len(row) :]
    if len(there) != len(row) or any(n not in {-1, wanted} for n, wanted in zip(there, row, strict=True)):
        raise _differs(address, f"has {list(tensor.shape)} as {tensor.name!r}", f"{[-1, *row]}")


def _gray(profile: Profile) -> Images:
    low, high = profile.input.value_range.bounds()
    image = np.broadcast_to((low + high) / 2, profile.input.shape)
    return image[None].astype(DATATYPES[profile.input.datatype])


def _differs(address: Address, said: str, expected: str) -> UpstreamError:
    return UpstreamError(
        f"{address} {said}, expected {expected} as calibrated; serve the model there that was calibrated"
    )
