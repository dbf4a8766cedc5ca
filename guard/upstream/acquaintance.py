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

from guard.arrays import Images, Logits, held
from guard.artifact import Probe, Profile
from guard.errors import ProbeError, UpstreamError, UpstreamStatusError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel
from guard.runtime.probing import check_logits
from guard.upstream.encoded_doubts import Doubt, doubts_of
from guard.upstream.encoded_probe import encoded_probe
from guard.upstream.forms import EncodedInput, InputForm, alike, form_of
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
    link: Link,
    predictor: Predictor,
    model: LoadedModel,
    metadata: pb.ModelMetadataResponse | None,
    encoded: EncodedInput | None = None,
) -> Acquaintance:
    """Compare what a server says and answers with a calibrated model.

    Args:
        link: To the server.
        predictor: Asks it.
        model: That is to check what it is asked.
        metadata: What it says of its model; None where it says nothing.
        encoded: Its input, where that takes encoded images.

    Raises:
        ProbeError: If it answers otherwise.
        UpstreamError: If its model takes anything beside the images, the tensors differ, or another version
            answers than the one that is asked for.
    """
    address, form = link.address, form_of(metadata, model.profile.input, encoded)
    if metadata is not None:
        _check_metadata(metadata, model.profile, address, form, encoded)
    if address.same and await _knows_every_version(link):
        raise UpstreamError(
            f"{address} says of every version that it is ready, so it does not tell them apart; leave out "
            f'upstream_version = "same"'
        )
    images, probe = await _asked(model, encoded)
    logits, versions = await predictor.answers(images, form)
    version = _only_version(versions, model, address)
    _check_answers(logits, probe, address, encoded)
    if encoded is not None and probe is not None:
        for doubt in await doubts_of(probe.images, model, encoded.record):
            await _settle(doubt, predictor, form, address)
    return Acquaintance(version, metadata)


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


def _check_metadata(
    metadata: pb.ModelMetadataResponse,
    profile: Profile,
    address: Address,
    form: InputForm,
    encoded: EncodedInput | None,
) -> None:
    """Compare what a server says of its model with what was calibrated; one that names no tensors passes."""
    source, sink = profile.input, profile.output
    inputs = [(tensor.name, tensor.datatype) for tensor in metadata.inputs]
    expected = (form.name, source.datatype if encoded is None else "BYTES")
    if inputs and not _fits(inputs, expected):
        if encoded is not None:
            raise UpstreamError(
                f"{address} takes {inputs}, expected {[expected]} as encoded_images says; leave that out "
                f"where the server takes tensors, or name its input (encoded_images.input)"
            )
        raise _differs(address, f"takes {inputs}", f"{[expected]}")
    outputs = {tensor.name: tensor for tensor in metadata.outputs}
    if outputs and sink.name not in outputs:
        raise _differs(address, f"gives {sorted(outputs)}", f"{sink.name!r}")
    for tensor in metadata.inputs if encoded is None else ():
        _check_row(tensor, list(source.shape), address)
    if outputs:
        _check_row(outputs[sink.name], [sink.classes], address)


def _fits(inputs: list[tuple[str, str]], expected: tuple[str, str]) -> bool:
    return len(inputs) == 1 and inputs[0][0] == expected[0] and alike(inputs[0][1], expected[1])


async def _asked(model: LoadedModel, encoded: EncodedInput | None) -> tuple[np.ndarray, Probe | None]:
    """Return what the server is asked, and what it should answer; None where that is not known."""
    images = model.probe.images if model.probe else _gray(model.profile)
    if encoded is None:
        return images, model.probe
    return await encoded_probe(images, model, encoded.record)


def _check_answers(
    logits: Logits, probe: Probe | None, address: Address, encoded: EncodedInput | None
) -> None:
    """Compare a server's answers with those at calibration; without a probe their form was enough."""
    if probe is None:
        return
    try:
        check_logits(logits, probe, str(address))
    except ProbeError as error:
        if encoded is None:
            raise
        raise ProbeError(
            f"{address} answers encoded images otherwise than encoded_images declares ({error}); compare "
            f"resize, crop, scale, mean, std, colour and input with what that server does"
        ) from error


async def _settle(doubt: Doubt, predictor: Predictor, form: InputForm, address: Address) -> None:
    try:
        logits, _ = await predictor.answers(doubt.files, form)
    except UpstreamStatusError:
        if doubt.form == "JPEG":  # a server that takes none reads none otherwise
            return
        raise
    doubt.settle(logits, str(address))


def _only_version(versions: set[str], model: LoadedModel, address: Address) -> str:
    """Return the version that answered; empty where the server does not say."""
    if address.same and versions != {model.version}:
        raise UpstreamError(
            f"{address} was asked for version {model.version!r} and answered in "
            f"{' and '.join(map(repr, sorted(versions)))}; have it say which version answers, or leave out "
            f'upstream_version = "same"'
        )
    if len(versions) > 1:
        raise UpstreamError(
            f"{address} answers in the versions {sorted(versions)}; set upstream_version to one"
        )
    return next(iter(versions))


def _check_row(tensor: pb.ModelMetadataResponse.TensorMetadata, row: list[int], address: Address) -> None:
    there = list(tensor.shape)[-len(row) :]
    if len(there) != len(row) or any(n not in {-1, wanted} for n, wanted in zip(there, row, strict=True)):
        raise _differs(address, f"has {list(tensor.shape)} as {tensor.name!r}", f"{[-1, *row]}")


def _gray(profile: Profile) -> Images:
    low, high = profile.input.value_range.bounds()
    image = np.broadcast_to((low + high) / 2, profile.input.shape)
    return held(image[None], profile.input.datatype)


def _differs(address: Address, said: str, expected: str) -> UpstreamError:
    return UpstreamError(
        f"{address} {said}, expected {expected} as calibrated; serve the model there that was calibrated"
    )
