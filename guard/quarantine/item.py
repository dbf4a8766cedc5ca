"""What is kept of one input, and the names of its files: never made of what a caller sent."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Annotated, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from guard.detection.threshold import Policy, Tier, Verdict

__all__ = ["ITEM_ID", "ItemRecord", "folder_of", "new_id", "short_text"]

ITEM_ID: Final = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{8}")
"""Moment of the verdict, UTC to the microsecond, and a random part: ids sort by time."""

_MAX_FOLDER: Final = 150
_MAX_TEXT: Final = 512
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, Field(max_length=1024)]
_Size = Annotated[int, Field(ge=1)]
_Moment = Annotated[FiniteFloat, Field(ge=0.0, lt=253_402_300_800.0)]  # before the year 10000


class ItemRecord(BaseModel):
    """The ``.json`` of an item.

    Attributes:
        id: Also the name of its files.
        model: Name it was served under.
        version: Version that judged it.
        digest: SHA-256 of that version's manifest.
        at: When it was judged, seconds since the epoch; of the first, where it came more than once.
        last_at: The same, of the last.
        count: How often the same image came for the same model, as long as this item was there.
        row: Number in its request.
        request_id: What the caller named the request; cut if it was long.
        client: HMAC-SHA256 of the caller's address under the folder's own key; empty where it is not known.
        verdict: ``reject`` or ``flag``.
        tier: The highest boundary that it is beyond, whatever the policy; None in items that do not say.
        policy: Of the model, at that time.
        score: The detector's, higher is more suspicious.
        p_value: Of the score.
        passes: Overlays that were looked at.
        label: Class that the model gave it, -1 where that is not known.
        layout: Order of the model's axes, the batch included.
        low, high: Range of the values that the model takes: one for all, or one for each channel.
        dtype: Of the image, as numpy writes it, such as ``<f4``.
        shape: Of the image, in the model's layout.
        sha256: Of the ``.npy`` file.
        bytes: Of the ``.npy`` file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    id: Annotated[str, Field(pattern=f"^{ITEM_ID.pattern}$")]
    model: _Text
    version: _Text
    digest: _Text
    at: _Moment
    last_at: _Moment
    count: _Size = 1
    row: Annotated[int, Field(ge=0)]
    request_id: _Text
    client: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    verdict: Verdict
    tier: Tier | None = None
    policy: Policy
    score: FiniteFloat
    p_value: FiniteFloat
    passes: Annotated[int, Field(ge=0)]
    label: Annotated[int, Field(ge=-1, lt=2**31)]
    layout: Literal["NCHW", "NHWC"]
    low: tuple[FiniteFloat, ...]
    high: tuple[FiniteFloat, ...]
    dtype: Annotated[str, Field(pattern=r"^[<|=>]?[biuf][0-9]{1,2}$")]
    shape: tuple[_Size, _Size, _Size]
    sha256: _Sha256
    bytes: _Size

    @model_validator(mode="after")
    def _a_range_fits_the_channels(self) -> ItemRecord:
        channels = self.shape[0 if self.layout == "NCHW" else 2]
        if not {len(self.low), len(self.high)} <= {1, channels}:
            raise ValueError(f"low and high: expected 1 or {channels} numbers each")
        return self


def new_id(at: float) -> str:
    """Return an id for an input judged at a moment, in seconds since the epoch."""
    return f"{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(4)}"


def folder_of(model: str) -> str:
    """Return the name of the folder that holds the items of a model.

    Examples:
        >>> [folder_of(name) for name in ("resnet-50", "../x", ".hidden", "größe")]
        ['resnet-50', '%2E.%2Fx', '%2Ehidden', 'gr%C3%B6%C3%9Fe']
    """
    name = quote(model, safe="", errors="replace")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if name and len(name) <= _MAX_FOLDER:
        return name
    return f"{name[:_MAX_FOLDER]}={hashlib.sha256(model.encode(errors='replace')).hexdigest()[:16]}"


def short_text(text: str) -> str:
    """Return text that can be written as UTF-8, cut where it is long."""
    plain = text[: _MAX_TEXT + 1].encode(errors="replace").decode()
    return plain if len(plain) <= _MAX_TEXT else plain[:_MAX_TEXT] + "…"
