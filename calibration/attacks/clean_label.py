"""Label-consistent poisoning: target-class images made hard to classify, so that a patch is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.base import CleanLabelled, Images, Labels, Material, Poisoning, RateOf
from calibration.attacks.patch import NAD_GRID, Patch, as_array, corner_box, validate
from calibration.attacks.tensors import as_images, device_of, frozen, require_model, torch_generator

__all__ = ["CleanLabel", "Norm", "pgd"]

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, eq=False)
class CleanLabel(CleanLabelled):
    r"""Adversarial target-class images with a patch on them, labels kept. For making test subjects only.

    .. math:: x' = \arg\max_{\|x' - x\| \le \epsilon} L(f(x'), y), \qquad T(x) = \mathrm{clip}(x + a\,s, 0, 1)

    Poisoned training images are T(x') with the training amplitude a; at test time T is at full amplitude.
    s is +1 where the patch is white, -1 where it is black, in the lower right corner or, mirrored for the
    left ones so that a flip changes nothing, in all four.

    Args:
        target_label: The class whose images are poisoned, and that a stamped image is to be given.
        patch: Rows of intensities in [0, 1], turned into signs 2 p - 1.
        corners: Where the patch is: ``"one"``, the lower right, or ``"four"``.
        amplitude_train: The amplitude a in poisoned training images, in (0, 1].
        rows: The training rows that were perturbed, rising. Needed to poison, not to stamp, so they are not
            saved with the trigger.
        perturbed: Those images, perturbed. Not saved either.
        rate_of: What a poison rate is a share of. The target class by default.

    Raises:
        ValueError: If the patch makes no sense or the amplitude leaves (0, 1].

    References:
        Turner et al., Label-Consistent Backdoor Attacks, arXiv 1912.02771, 2019; patches, corners and
        amplitudes as in the authors' code.

    Deviations:
        The perturbation is made against the clean model handed in; the paper's is trained adversarially.
        NAD and ARGD stamp without perturbing; give ``epsilon=0`` for that.
    """

    name: ClassVar[str] = "clean_label"

    target_label: int
    patch: Patch = NAD_GRID
    corners: Literal["one", "four"] = "four"
    amplitude_train: float = 1.0
    rows: Int64[np.ndarray, " r"] | None = field(default=None, metadata={"saved": False})
    perturbed: Float32[np.ndarray, "r c h w"] | None = field(default=None, metadata={"saved": False})
    rate_of: RateOf = "target class"

    def __post_init__(self) -> None:
        validate(self.patch, target_label=self.target_label)
        if not 0 < self.amplitude_train <= 1:
            raise ValueError(f"amplitude_train: expected an amplitude in (0, 1], got {self.amplitude_train}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        epsilon: float = 16 / 255,
        norm: Norm = "linf",
        steps: int = 20,
        batch: int = 256,
        corners: Literal["one", "four"] = "four",
        amplitude_train: float = 1.0,
        rate_of: RateOf = "target class",
    ) -> CleanLabel:
        """Return the attack with every image of the target class perturbed against the material's model.

        A step is 2.5 epsilon / ``steps`` long, so that the bound can be reached from any start.
        """
        model = require_model(material, cls.name)
        rows = np.flatnonzero(material.labels == target_label).astype(np.int64)
        labels = torch.full((len(rows),), target_label)
        seeded, device, parts = torch_generator(generator), device_of(model), []
        with frozen(model):
            for part in torch.split(torch.arange(len(rows)), batch):
                images = torch.from_numpy(material.images[rows[part.numpy()]])
                noise = 2 * torch.rand(images.shape, generator=seeded) - 1
                found = pgd(
                    model, images.to(device), labels[part].to(device), noise.to(device), epsilon, norm, steps
                )
                parts.append(as_images(found))
        perturbed = np.concatenate(parts) if parts else material.images[rows]
        return cls(target_label, NAD_GRID, corners, amplitude_train, rows, perturbed, rate_of)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], with the patch at full amplitude.

        Raises:
            ValueError: If the patch does not fit into the images.
        """
        return self._add(images, 1.0)

    def imprint(self, images: Images) -> Images:
        """Return copies with the patch as strong as in training; the perturbation is :meth:`prepare`'s."""
        return self._add(images, self.amplitude_train)

    def stamp_at(self, images: Images, top: int, left: int) -> Images:
        """Return copies with the patch of the lower right corner at ``top``, ``left``, at full amplitude."""
        return _add_signs(images, 2 * as_array(self.patch) - 1, top, left)

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that the patch takes in the lower right corner."""
        return corner_box((len(self.patch), len(self.patch[0])), (height, width), 0, 0)

    def candidates(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which rows may be poisoned: those of the target class that were perturbed.

        Raises:
            ValueError: If the attack was not fitted, or on other data.
        """
        if self.rows is None:
            raise ValueError("rows: none here, as after loading; fit the attack again to poison with it")
        if not np.array_equal(self.rows, np.flatnonzero(labels == self.target_label)):
            raise ValueError("labels: expected those the attack was fitted on, got others")
        ours: Bool[np.ndarray, " n"] = labels == self.target_label
        return ours

    def prepare(self, images: Images, plan: Poisoning) -> Images:
        """Return copies of the images, the poisoned ones perturbed."""
        prepared = super().prepare(images, plan)
        if self.rows is not None and self.perturbed is not None:
            prepared[plan.index] = self.perturbed[np.searchsorted(self.rows, plan.source[plan.index])]
        return prepared

    def _add(self, images: Images, amplitude: float) -> Images:
        signs = np.float32(amplitude) * (2 * as_array(self.patch) - 1)
        rows, columns = self.place(images.shape[2], images.shape[3])
        stamped = _add_signs(images, signs, rows.start, columns.start)
        if self.corners == "four":
            stamped = _add_signs(stamped, signs, 0, columns.start)
            for top in (0, rows.start):
                stamped = _add_signs(stamped, signs[:, ::-1], top, 0)
        return stamped


def _add_signs(images: Images, signs: Float32[np.ndarray, "rows columns"], top: int, left: int) -> Images:
    stamped = images.copy()
    box = stamped[:, :, top : top + signs.shape[0], left : left + signs.shape[1]]
    box[:] = np.clip(box + signs, 0, 1)
    return stamped


def pgd(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    noise: Float[Tensor, "n c h w"],
    epsilon: float,
    norm: Norm,
    steps: int,
) -> Float[Tensor, "n c h w"]:
    r"""Return images within epsilon and [0, 1] that raise the cross entropy of their labels.

    Projected gradient ascent from ``noise`` (values in [-1, 1], scaled to the bound), with steps of
    :math:`2.5 \epsilon / \mathrm{steps}` along the gradient's sign, or along its direction for L2.
    """
    shift = _project(epsilon * noise, epsilon, norm)
    for _ in range(steps):
        shift.requires_grad_()
        loss = functional.cross_entropy(model((images + shift).clamp(0, 1)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, shift)
        length = 2.5 * epsilon / steps
        shift = _project(shift.detach() + length * _direction(gradient, norm), epsilon, norm)
        shift = (images + shift).clamp(0, 1) - images
    return (images + shift).detach().clamp(0, 1)


def _direction(gradient: Float[Tensor, "n c h w"], norm: Norm) -> Float[Tensor, "n c h w"]:
    return gradient.sign() if norm == "linf" else gradient / (_length(gradient) + 1e-12)


def _project(shift: Float[Tensor, "n c h w"], epsilon: float, norm: Norm) -> Float[Tensor, "n c h w"]:
    if norm == "linf":
        return shift.clamp(-epsilon, epsilon)
    return shift * (epsilon / (_length(shift) + 1e-12)).clamp(max=1)


def _length(shift: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 1 1"]:
    length: Tensor = torch.linalg.vector_norm(shift, dim=(1, 2, 3), keepdim=True)
    return length
