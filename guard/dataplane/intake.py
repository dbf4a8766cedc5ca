"""What callers may send as a model's images, and how it becomes the tensor that is checked.

Tensors of the model's own datatype pass as they are. Encoded images (BYTES) are decoded in a few threads of
their own, never on the event loop, and no more of them wait there than the operator allows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Num

from guard.arrays import Images, held
from guard.artifact import InputSpec, Preprocessing, Profile
from guard.dataplane.losses import shed_reason
from guard.dataplane.validation import require_only_input, require_rows
from guard.errors import (
    DeadlineError,
    InvalidRequestError,
    QueueFullError,
    SettingsError,
    UnsupportedRequestError,
)
from guard.messages import InferRequest, Tensor
from guard.metrics import ShedReason

__all__ = ["Accepts", "Intake", "check_declaration"]

_THREADS: Final = 4
_NO_PILLOW: Final = (
    "encoded images cannot be read here, as Pillow is not installed; have the operator install "
    "inference-guard[images]"
)


@dataclass(frozen=True)
class Accepts:
    """What callers may send.

    Attributes:
        name: Of the input.
        datatype: Of tensors; empty where encoded images alone are taken.
        encoded: How encoded images become the model's; None where none are taken.
        plain: Whether another program decodes them, too, so that what programs decode differently is refused.
    """

    name: str
    datatype: str
    encoded: Preprocessing | None = None
    plain: bool = False

    @property
    def datatypes(self) -> tuple[str, ...]:
        """V2 datatypes that the input may have."""
        return tuple(name for name in (self.datatype, self.encoded and "BYTES") if name)

    @classmethod
    def by_model(cls, profile: Profile) -> Accepts:
        """Return what a model takes that runs here, by its profile."""
        encoded = profile.preprocessing if profile.preprocessing.eight_bit else None
        return cls(profile.input.name, profile.input.datatype, encoded)


class Intake:
    """Turns requests into such as hold the model's own tensor; used on the event loop.

    Args:
        max_rows: Most rows in one request.
        max_pixels: Most pixels of an encoded image.
        max_waiting: Most encoded images that wait or are being decoded.
        on_shed: Told of requests that were dropped meanwhile, by model.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_pixels: int = 2**24,
        max_waiting: int = 1024,
        on_shed: Callable[[str, ShedReason], None] = lambda _model, _reason: None,
    ) -> None:
        self._on_shed = on_shed
        self._max_rows = max_rows
        self._max_pixels = max_pixels
        self._max_waiting = max_waiting
        self._waiting = 0
        threads = min(_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="guard-images")

    async def read(
        self, request: InferRequest, source: InputSpec, accepts: Accepts, limit_s: float
    ) -> InferRequest:
        """Return the request with the model's own tensor as its input; itself if it has that already.

        Time that decoding takes is taken off the time that the request has.

        Args:
            request: As it came.
            source: The model's input.
            accepts: What callers may send.
            limit_s: Seconds that the request has.

        Raises:
            InvalidRequestError: If it holds something else than is taken, or an image that cannot be decoded.
            UnsupportedRequestError: If encoded images cannot be read here.
            QueueFullError: If too many images wait already.
            DeadlineError: If decoding takes too long.
        """
        require_only_input([tensor.name for tensor in request.inputs], request.model_name, accepts.name)
        [tensor] = request.inputs
        if tensor.datatype == source.datatype == accepts.datatype and source.name == accepts.name:
            return request
        if tensor.datatype not in accepts.datatypes:
            raise InvalidRequestError(
                f"input {tensor.name!r} has datatype {tensor.datatype}, "
                f"expected {' or '.join(accepts.datatypes)}; convert the images"
            )
        if tensor.datatype != "BYTES":
            own = Tensor(source.name, source.datatype, _converted(tensor.data, source.datatype))
            return replace(request, inputs=(own,))
        began = time.monotonic()
        try:
            rows = await self._within(limit_s, tensor, source, accepts)
        except BaseException as error:
            reason = shed_reason(error, request.timeout_s, time.monotonic() - began)
            if reason is not None:
                self._on_shed(request.model_name, reason)
            raise
        left_s = max(0.0, limit_s - (time.monotonic() - began))
        return replace(request, inputs=(Tensor(source.name, source.datatype, rows),), timeout_s=left_s)

    def close(self) -> None:
        """Give up what waits, and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _within(self, limit_s: float, tensor: Tensor, source: InputSpec, accepts: Accepts) -> Images:
        blobs = _elements(tensor, self._max_rows)
        if self._waiting + len(blobs) > self._max_waiting:
            raise QueueFullError(
                f"{self._waiting} encoded images wait to be decoded, at most {self._max_waiting} may; "
                f"retry later"
            )
        self._waiting += len(blobs)
        try:
            async with asyncio.timeout(limit_s):
                return await self._decoded(blobs, tensor.name, source, accepts)
        except TimeoutError:
            raise DeadlineError(
                f"{len(blobs)} encoded images were not decoded within {limit_s:.3f} s; allow more time, send "
                f"fewer or smaller ones"
            ) from None
        finally:
            self._waiting -= len(blobs)

    async def _decoded(
        self, blobs: Sequence[bytes], name: str, source: InputSpec, accepts: Accepts
    ) -> Images:
        loop = asyncio.get_running_loop()
        decode = partial(_row, source=source, accepts=accepts, max_pixels=self._max_pixels)
        rows = [
            loop.run_in_executor(self._pool, decode, blob, f"input {name!r}, image {number}")
            for number, blob in enumerate(blobs)
        ]
        try:
            return np.stack(await asyncio.gather(*rows))
        finally:
            for row in rows:
                row.cancel()  # what has not begun need not begin


def check_declaration(declared: Preprocessing, source: InputSpec, model: str) -> None:
    """See that what an operator says of encoded images fits a model.

    Raises:
        SettingsError: If it does not, or such images cannot be read here.
    """
    where = f"models.{model}.encoded_images"
    try:
        from guard.pixels.resizing import Sizing  # noqa: PLC0415  Pillow is needed only here
    except ImportError as error:
        raise SettingsError(f"setting {where}: {_NO_PILLOW}") from error
    for what in ("mean", "std"):
        values = getattr(declared, what)
        if len(values) not in {1, source.channels}:
            raise SettingsError(
                f"setting {where}.{what}: expected 1 or {source.channels} values, one for each channel, "
                f"got {len(values)}"
            )
    if declared.colour == "BGR" and source.channels != 3:
        raise SettingsError(
            f"setting {where}.colour: BGR is for 3 channels, the model takes {source.channels}"
        )
    fixed = declared.crop is not None or (declared.resize is not None and len(declared.resize) == 2)
    result = Sizing(declared.resize, declared.crop).result((2**20, 2**20))
    if fixed and result != source.size:
        raise SettingsError(
            f"setting {where}: images come to {result} (height and width) by resize and crop, expected "
            f"{source.size} as the model takes"
        )


def _row(
    blob: bytes, where: str, *, source: InputSpec, accepts: Accepts, max_pixels: int
) -> Num[np.ndarray, "..."]:
    """Return one encoded image as a row of the model's input; runs in a thread of the pool."""
    try:
        from guard.pixels.declared import DeclaredImages  # noqa: PLC0415  Pillow is needed only here
    except ImportError as error:
        raise UnsupportedRequestError(f"{where}: {_NO_PILLOW}, or send tensors") from error
    assert accepts.encoded is not None
    return DeclaredImages(accepts.encoded, source, max_pixels, plain=accepts.plain).row(blob, where)


def _elements(tensor: Tensor, max_rows: int) -> list[bytes]:
    shape = tensor.data.shape
    if len(shape) not in {1, 2} or shape[1:] not in {(), (1,)}:
        raise InvalidRequestError(
            f"input {tensor.name!r} has shape {tuple(shape)}, expected (batch) or (batch, 1) of "
            f"encoded images"
        )
    require_rows(shape[0], tensor.name, max_rows)
    elements: list[bytes] = tensor.data.ravel().tolist()
    return elements


def _converted(data: np.ndarray, datatype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float16 is infinite, and refused as such
        return held(data, datatype)
