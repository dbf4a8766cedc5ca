"""Does a server that takes encoded images do with them what the operator declares?

The images stored at calibration are made into files, lossless, which the server is sent. Its answers are
compared with those of the model here to what the guard itself makes of the same files: so both are, the model
there and all that is done before it.
"""

from __future__ import annotations

import asyncio

import numpy as np

from guard.arrays import Images
from guard.artifact import InputSpec, Preprocessing, Probe
from guard.runtime.loader import LoadedModel

__all__ = ["encoded_probe"]

_PIXELS = 2**26


async def encoded_probe(
    images: Images, model: LoadedModel, record: Preprocessing
) -> tuple[np.ndarray, Probe]:
    """Return images as files, and what the model here answers to them.

    Args:
        images: Rows of the model's input.
        model: That checks what the server is asked.
        record: What is declared to become of files.

    Returns:
        The files, an array of bytes; the rows that they become, with the model's answers.

    Raises:
        InvalidRequestError: If what is declared makes no rows of them.
        UnavailableError: If the model takes nothing just now, or fails.
    """
    files, rows = await asyncio.to_thread(_files_and_rows, images, record, model.profile.input)
    submission = model.scheduler.submit(rows, np.zeros(len(rows), np.bool_), answer_first=True)
    logits = await submission.prediction
    return files, Probe(rows, logits, np.zeros(len(rows), np.float64))


def _files_and_rows(images: Images, record: Preprocessing, source: InputSpec) -> tuple[np.ndarray, Images]:
    from guard.pixels.declared import DeclaredImages  # noqa: PLC0415  Pillow is needed only here

    declared = DeclaredImages(record, source, _PIXELS, plain=True)
    files = np.empty(len(images), np.object_)
    files[:] = list(declared.files(images))
    rows = [declared.row(file, f"stored image {number}") for number, file in enumerate(files.tolist())]
    return files, np.stack(rows)
