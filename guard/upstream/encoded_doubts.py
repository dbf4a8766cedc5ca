"""Does a server that takes encoded images read those otherwise that calibration had none of?

The images stored then do not show all that a server does with files, see :mod:`guard.pixels.readings`; and
who knows that it reads some of them otherwise than the guard can send a file in which the server sees a
trigger, and the guard none. Other decoders and resizers may differ from the guard's by a little. So its
answers have only to be nearer to what the model answers to files as declared than to what it answers to them
read otherwise.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from guard.arrays import Images, Logits
from guard.artifact import Preprocessing
from guard.errors import ProbeError
from guard.runtime.loader import LoadedModel
from guard.runtime.probing import FLOOR, TOLERANCE

__all__ = ["Doubt", "doubts_of"]

_IMAGES: Final = 4
_ADVICE: Final = MappingProxyType(
    {
        "JPEG": "set orientation to what that server does",
        "PNG": "have that server average as Pillow's bilinear filter does (antialias), or declare no resize "
        "and send images of the model's size",
    }
)


@dataclass(frozen=True, eq=False)
class Doubt:
    """Files that can be read in several ways, and what the model here answers in each.

    Attributes:
        what: What is particular about them; begins with their format.
        files: An array of bytes.
        declared: Answers to them as they are declared.
        otherwise: Answers to them read otherwise, way by way.
    """

    what: str
    files: np.ndarray
    declared: Logits
    otherwise: tuple[Logits, ...]

    @property
    def form(self) -> str:
        """JPEG or PNG."""
        return self.what.split()[0]

    def settle(self, answers: Logits, where: str) -> None:
        """Compare a server's answers.

        Args:
            answers: To the files.
            where: The server, for errors.

        Raises:
            ProbeError: If they are much nearer to what another way gives.
        """
        off = _distance(answers, self.declared)
        if off <= FLOOR + TOLERANCE * float(np.abs(self.declared).max()):
            return
        if not all(off <= 2 * _distance(answers, other) for other in self.otherwise):  # NaN is wrong, too
            raise ProbeError(
                f"{where} answers encoded images otherwise than encoded_images declares: {self.what} are "
                f"read in another way there; {_ADVICE[self.form]}"
            )


async def doubts_of(images: Images, model: LoadedModel, record: Preprocessing) -> list[Doubt]:
    """Return what a server has to be asked beside the stored images.

    Args:
        images: Rows of the model's input.
        model: That checks what the server is asked.
        record: What is declared to become of files.

    Raises:
        InvalidRequestError: If what is declared makes no rows of the files.
        UnavailableError: If the model takes nothing just now, or fails.
    """
    from guard.pixels.readings import readings_of  # noqa: PLC0415  Pillow is needed only here

    doubts = []
    source = model.profile.input
    for one in await asyncio.to_thread(readings_of, images[:_IMAGES], record, source):
        files = np.empty(len(one.files), np.object_)
        files[:] = list(one.files)
        otherwise = [await _answers(model, rows) for rows in one.otherwise]
        doubts.append(Doubt(one.what, files, await _answers(model, one.declared), tuple(otherwise)))
    return doubts


async def _answers(model: LoadedModel, rows: Images) -> Logits:
    submission = model.scheduler.submit(rows, np.zeros(len(rows), np.bool_), answer_first=True)
    return await submission.prediction


def _distance(some: Logits, others: Logits) -> float:
    return float(np.abs(some - others).mean())
