"""Asks a model server for the predictions of images, in batches that it takes."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

import numpy as np
from google.protobuf.message import DecodeError

from guard.arrays import Images, Logits
from guard.artifact import Profile
from guard.errors import RequestError, UpstreamDeadlineError, UpstreamError, UpstreamStatusError
from guard.rpc.contents import decode_raw, decode_typed
from guard.rpc.pb import open_inference_pb2 as pb
from guard.upstream.counts import UpstreamPurpose
from guard.upstream.forms import InputForm, alike
from guard.upstream.link import Link

__all__ = ["Gate", "Predictor", "UpstreamBusyError"]

_GRACE_S: Final = 1.0
_BUSY: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED"})
"""What a server says of itself, and not of what it was asked."""


class UpstreamBusyError(UpstreamError):
    """The server is there, and takes nothing just now."""


@runtime_checkable
class Gate(Protocol):
    """Whether a server may be asked."""

    def require_ready(self) -> None:
        """Raise UpstreamError if it may not."""
        ...

    def expect(self, version: str, asked: str) -> None:
        """Raise UpstreamError if a version that answered is not the one that is meant."""
        ...

    def lost(self, why: str) -> None:
        """Take note that it could not be asked."""
        ...


class Predictor:
    """Predictions of one calibrated model, made by a server.

    Args:
        link: To the server.
        profile: Of the model: names, datatypes and the number of classes.
        form: Tells in which form the server takes images; asked before every check.
        version: To ask for; empty for whichever the server takes.
        loop: That the link belongs to.
        timeout_s: Longest wait for a batch.
        max_batch_size: Tells the most rows that the server takes in a request; asked before every batch.
        gate: Says whether the server may be asked, and is told what came of it.
    """

    def __init__(
        self,
        link: Link,
        profile: Profile,
        loop: asyncio.AbstractEventLoop,
        *,
        form: Callable[[], InputForm],
        version: str,
        timeout_s: float,
        max_batch_size: Callable[[], int],
        gate: Gate,
    ) -> None:
        self._link = link
        self._profile = profile
        self._loop = loop
        self._form = form
        self._version = version
        self._timeout_s = timeout_s
        self._max_batch_size = max_batch_size
        self._gate = gate

    def __call__(self, images: Images) -> Logits:
        """Return the model's output for each image; blocks, and is never called on the event loop.

        Raises:
            UpstreamError, UpstreamDeadlineError, UpstreamStatusError: If there is none.
        """
        asked = asyncio.run_coroutine_threadsafe(self.logits(images), self._loop)
        try:
            return asked.result(self._timeout_s + _GRACE_S)
        except concurrent.futures.TimeoutError:
            asked.cancel()
            raise UpstreamDeadlineError(
                f"{self._link.address} did not answer a check within {self._timeout_s:.3f} s; "
                f"add capacity there"
            ) from None

    async def logits(self, images: Images) -> Logits:
        """Return the same, on the event loop."""
        self._gate.require_ready()
        try:
            logits, versions = await self.answers(images, self._form())
        except UpstreamBusyError:
            raise
        except UpstreamError as error:
            self._gate.lost(str(error))
            raise
        for version in versions:
            self._gate.expect(version, self._version)
        return logits

    async def answers(self, images: np.ndarray, form: InputForm) -> tuple[Logits, set[str]]:
        """Return the model's output for each image, and the versions that answered, whichever they are.

        Args:
            images: Rows, or encoded files as an array of bytes.
            form: In which they are sent.
        """
        batches = self._batches(images)
        calls = [asyncio.ensure_future(self._ask(batch, form)) for batch in batches]
        try:
            answers = await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()
        parts = [self._logits_of(answer, len(batch)) for answer, batch in zip(answers, batches, strict=True)]
        return np.concatenate(parts)[: len(images)], {answer.model_version for answer in answers}

    def _batches(self, images: np.ndarray) -> list[np.ndarray]:
        fixed = self._profile.fixed_batch
        if fixed is None:
            size = max(1, self._max_batch_size())
            return [images[start : start + size] for start in range(0, len(images), size)]
        rows = np.arange(-(-len(images) // fixed) * fixed)
        padded = np.minimum(rows, len(images) - 1)  # the last batch is filled up with the last image
        return [images[part] for part in padded.reshape(-1, fixed)]

    async def _ask(self, images: np.ndarray, form: InputForm) -> pb.ModelInferResponse:
        address = self._link.address
        request = pb.ModelInferRequest(model_name=address.model, model_version=self._version)
        form.put(images, request)
        request.outputs.add(name=self._profile.output.name)
        try:
            answer = await self._link.infer(
                request.SerializeToString(), self._timeout_s, purpose=UpstreamPurpose.CHECK
            )
        except UpstreamStatusError as error:
            if error.code in _BUSY:
                raise UpstreamBusyError(f"{address} takes no check just now: {error}; retry") from error
            raise
        try:
            return pb.ModelInferResponse.FromString(answer.message)
        except DecodeError as error:
            raise self._strange("something that is no ModelInferResponse") from error

    def _logits_of(self, answer: pb.ModelInferResponse, rows: int) -> Logits:
        sink = self._profile.output
        names = [output.name for output in answer.outputs]
        if sink.name not in names:
            raise self._strange(f"the outputs {names}")
        index = names.index(sink.name)
        output = answer.outputs[index]
        if not alike(output.datatype, sink.datatype) or list(output.shape) != [rows, sink.classes]:
            raise self._strange(f"{output.datatype} {list(output.shape)} as output {sink.name!r}")
        try:
            if index < len(answer.raw_output_contents):
                raw = answer.raw_output_contents[index]
                logits = decode_raw(output.name, output.datatype, output.shape, raw)
            else:
                logits = decode_typed(output.name, output.datatype, output.shape, output.contents)
        except RequestError as error:
            raise self._strange(f"contents that do not fit ({error})") from error
        return logits.astype(np.float32)

    def _strange(self, what: str) -> UpstreamError:
        sink = self._profile.output
        return UpstreamError(
            f"{self._link.address} answered a check with {what}, expected output {sink.name!r}, "
            f"{sink.datatype} [batch, {sink.classes}]; have the operator serve the calibrated model there"
        )
