"""Is the model on a server the one that was calibrated?

A check says something of the answer only if both come from the same network. So a server is asked, before it
gets any request and again whenever it was away or says something else of its model, for what it takes and
gives and for its answers to the images that were stored at calibration. Where versions are served side by
side (``upstream_version = "same"``) each is asked for by itself, before the one here of that number
checks anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from guard.arrays import DATATYPES, Images
from guard.artifact import Profile
from guard.errors import UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.runtime.probing import check_logits
from guard.upstream.link import Address, Link
from guard.upstream.predictor import Predictor

__all__ = ["Acquaintance", "config_of", "get_acquainted", "metadata_of", "require_ready"]

_ASK_S: Final = 5.0
_NOBODYS_VERSION: Final = "987654321"


@dataclass(frozen=True)
class Acquaintance:
    """What a server said of a model that answered as it did at calibration.

    Attributes:
        version: The version that answered; empty where the server does not say.
        metadata: What it says of it; None where it says nothing.
    """

    version: str
    metadata: pb.ModelMetadataResponse | None


async def require_ready(link: Link, model: LoadedModel) -> None:
    """Ask whether a version is ready.

    Raises:
        UpstreamError: If it is not.
        UpstreamStatusError: If the server knows of none.
    """
    address, version = link.address, link.address.version_of(model)
    if not await _is_ready(link, version):
        what = f"version {version!r} of it" if version else "it"
        raise UpstreamError(f"{address} says that {what} is not ready")


async def metadata_of(link: Link, model: LoadedModel) -> pb.ModelMetadataResponse | None:
    """Return what a server says of a version; of other versions beside it nothing."""
    address = link.address
    request = pb.ModelMetadataRequest(name=address.model, version=address.version_of(model))
    metadata: pb.ModelMetadataResponse | None = await _if_served(link, "ModelMetadata", request)
    if metadata is not None and address.same:
        metadata.versions[:] = [model.version]
    return metadata


async def config_of(link: Link, model: LoadedModel) -> pb.ModelConfig | None:
    """Return how a version is configured there; None where the server does not say."""
    request = pb.ModelConfigRequest(name=link.address.model, version=link.address.version_of(model))
    answer = await _if_served(link, "ModelConfig", request)
    return None if answer is None else answer.config


async def get_acquainted(
    link: Link, predictor: Predictor, model: LoadedModel, metadata: pb.ModelMetadataResponse | None
) -> Acquaintance:
    """Compare what a server says and answers with a calibrated model.

    Raises:
        ProbeError: If it answers otherwise.
        UpstreamError: If its model takes anything beside the images, the tensors differ, or another version
            answers than the one that is asked for.
    """
    address = link.address
    if metadata is not None:
        _check_metadata(metadata, model.profile, address)
    if address.same and await _knows_every_version(link):
        raise UpstreamError(
            f"{address} says of every version that it is ready, so it does not tell them apart; leave out "
            f'upstream_version = "same"'
        )
    return Acquaintance(await _check_answers(predictor, model, address), metadata)


async def _is_ready(link: Link, version: str) -> bool:
    request = pb.ModelReadyRequest(name=link.address.model, version=version)
    return bool((await link.ask("ModelReady", request, _ASK_S)).ready)


async def _knows_every_version(link: Link) -> bool:
    try:
        return await _is_ready(link, _NOBODYS_VERSION)
    except UpstreamStatusError:
        return False


async def _if_served(link: Link, method: str, request: object) -> Any:
    try:
        return await link.ask(method, request, _ASK_S)
    except UpstreamStatusError as error:
        if error.code == "UNIMPLEMENTED":
            return None
        raise


def _check_metadata(metadata: pb.ModelMetadataResponse, profile: Profile, address: Address) -> None:
    """Compare what a server says of its model with what was calibrated; one that names no tensors passes."""
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


async def _check_answers(predictor: Predictor, model: LoadedModel, address: Address) -> str:
    """Compare a server's answers with those at calibration; without a probe only their form.

    Returns:
        The version that answered; empty where the server does not say.
    """
    probe = model.probe
    logits, versions = await predictor.answers(probe.images if probe else _gray(model.profile))
    if address.same and versions != {model.version}:
        raise UpstreamError(
            f"{address} was asked for version {model.version!r} and answered in "
            f"{' and '.join(map(repr, sorted(versions)))}; have it say which version answers, or leave out "
            f'upstream_version = "same"'
        )
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
