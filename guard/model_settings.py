"""What an operator can set of a single model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guard.artifact.precision import Precision
from guard.detection.threshold import Policy

__all__ = ["SAME", "Count", "EncodedImages", "ModelSettings", "OnUncheckable", "Positive", "Rate"]

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
OnUncheckable = Literal["refuse", "answer"]
SAME: Final = "same"
"""As ``upstream_version``: the version of the artifact that checks."""

_TARGET: Final = re.compile(r"unix:/.+|[^\s/:]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}")
_THIS_MACHINE: Final = {"localhost", "[::1]", "0.0.0.0", "[::]"}
_OF_THE_DEVICE: Final = ("precision", "cuda_graphs")
_ONLY_GUARDED: Final = (
    *(
        "policy",
        "on_uncheckable",
        "sampling",
        "full_check_share",
        "second_opinions",
        "upstream_check",
        "upstream_load",
    ),
    *_OF_THE_DEVICE,
    *("encoded_images", "upstream_max_batch_size"),
)
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class EncodedImages(BaseModel):
    """How encoded images (BYTES of JPEG or PNG files) become a model's input; see ``Preprocessing``.

    Attributes:
        input: Name of the input that takes them on the model server; None for that of the artifact.
        resize: Height and width, or the shorter side alone, the other in proportion; None to leave the size.
        crop: Height and width of the middle that is kept then; None for all.
        scale: Factor on pixel values, which are 0 to 255.
        mean, std: One value for all channels, or one for each.
        colour: Order of colours that the model takes.
        orientation: ``ignore`` takes pixels as they are stored, ``apply`` turns them as EXIF says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Annotated[str, Field(min_length=1)] | None = None
    resize: Annotated[tuple[Count, ...], Field(min_length=1, max_length=2)] | None = None
    crop: tuple[Count, Count] | None = None
    scale: Finite = 1.0 / 255.0
    mean: Annotated[tuple[Finite, ...], Field(min_length=1)] = (0.0,)
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    colour: Literal["RGB", "BGR"] = "RGB"
    orientation: Literal["ignore", "apply"] = "ignore"


class ModelSettings(BaseModel):
    """Settings of one model; what is left out is taken from the server's.

    Attributes:
        policy: See :class:`~guard.settings.Settings`.
        on_uncheckable: See :class:`~guard.settings.Settings`.
        sampling: See :class:`~guard.settings.Settings`.
        full_check_share: See :class:`~guard.settings.Settings`.
        second_opinions: See :class:`~guard.settings.Settings`.
        precision: See :class:`~guard.settings.Settings`.
        cuda_graphs: See :class:`~guard.settings.Settings`.
        guarded: Whether its requests are checked. If not, they are passed on to the model server as they are,
            and no artifact belongs to it.
        encoded_images: How encoded images become the model's input, in place of what the artifact says; where
            a model server answers, that its input takes such images. None for tensors there.
        upstream: Model server that answers, ``host:port`` or ``unix:/path``; None to run the model here.
        upstream_model: Name of the model there; None for the same as here.
        upstream_version: Version to ask for there; ``same`` for the version of the artifact that checks,
            where the server has versions side by side; None to leave it to the server.
        upstream_load: ``swap`` has the server load the version that is swapped to, by the repository calls of
            its protocol; ``never`` leaves that to the operator.
        upstream_check: Where the blends of a check are run: ``local``, on the artifact's copy of the model,
            or ``upstream``, on the model server.
        upstream_max_batch_size: Most rows in a request that the server takes, where it does not say so.
        upstream_tls_ca: Who signs the server's certificate, PEM; None for a connection without TLS.
        upstream_tls_cert: Certificate chain that the guard shows there, PEM; None to show none.
        upstream_tls_key: Its key, PEM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy | None = None
    on_uncheckable: OnUncheckable | None = None
    sampling: Rate | None = None
    full_check_share: Rate | None = None
    second_opinions: Literal["off", "flagged", "sampled"] | None = None
    precision: Precision | None = None
    cuda_graphs: bool | None = None
    guarded: bool = True
    encoded_images: EncodedImages | None = None
    upstream: str | None = None
    upstream_model: Annotated[str, Field(min_length=1)] | None = None
    upstream_version: Annotated[str, Field(min_length=1)] | None = None
    upstream_load: Literal["never", "swap"] = "never"
    upstream_check: Literal["local", "upstream"] = "local"
    upstream_max_batch_size: Count = 64
    upstream_tls_ca: Path | None = None
    upstream_tls_cert: Path | None = None
    upstream_tls_key: Path | None = None

    @field_validator("upstream")
    @classmethod
    def _is_a_target(cls, value: str | None) -> str | None:
        if value is not None and not _TARGET.fullmatch(value):
            raise ValueError("expected host:port or unix:/path")
        return value

    @model_validator(mode="after")
    def _there_is_a_server(self) -> ModelSettings:
        beside = sorted(name for name in self.model_fields_set if name.startswith("upstream_"))
        if beside and self.upstream is None:
            raise ValueError(f"expected upstream beside {beside[0]}, got none; say which server it is about")
        if (self.upstream_tls_cert is None) != (self.upstream_tls_key is None):
            raise ValueError(
                "expected upstream_tls_cert and upstream_tls_key both or neither, got one of them"
            )
        if self.upstream_tls_cert is not None and self.upstream_tls_ca is None:
            raise ValueError(
                "expected upstream_tls_ca beside upstream_tls_cert, got none; name who signs there"
            )
        if self.encoded_images is not None and self.encoded_images.input and self.upstream is None:
            raise ValueError(
                "expected upstream beside encoded_images.input, got none; a model that runs here takes "
                "encoded images at its own input"
            )
        if self.encoded_images is not None and self.upstream_check == "upstream":
            raise ValueError(
                'expected upstream_check = "local" beside encoded_images, got "upstream"; blends are '
                "tensors, which a server that takes encoded images cannot be sent"
            )
        here = [name for name in _OF_THE_DEVICE if name in self.model_fields_set]
        if here and self.upstream_check == "upstream":
            raise ValueError(
                f'expected upstream_check = "local" beside {here[0]}, got "upstream"; the model server says '
                f"itself how it computes"
            )
        return self

    @model_validator(mode="after")
    def _what_is_not_guarded_has_a_server_and_nothing_to_check(self) -> ModelSettings:
        if self.guarded:
            return self
        if self.upstream is None:
            raise ValueError("expected upstream beside guarded = false, got none; say who answers")
        without_effect = [name for name in _ONLY_GUARDED if name in self.model_fields_set]
        if without_effect:
            raise ValueError(
                f"expected no {without_effect[0]} beside guarded = false, as nothing is checked there; "
                f"leave it out, or have the model guarded"
            )
        if self.upstream_version == SAME:
            raise ValueError(
                f"expected no upstream_version = {SAME!r} beside guarded = false, as there is no artifact "
                f"whose version it could be; name the version, or leave it out"
            )
        return self

    def place_of(self, name: str) -> tuple[str, str] | None:
        """Return the server, and the model there, that answer for the model of that name; None for none.

        Names of this machine count as one. That two other names lead to the same server cannot be told.
        """
        if self.upstream is None:
            return None
        host, _, port = self.upstream.rpartition(":")
        if self.upstream.startswith("unix:"):
            server = f"unix:{Path(self.upstream.removeprefix('unix:')).resolve()}"
        else:
            here = host.lower() in _THIS_MACHINE or host.startswith("127.")
            server = f"{'127.0.0.1' if here else host.lower().rstrip('.')}:{int(port)}"
        return server, self.upstream_model or name
