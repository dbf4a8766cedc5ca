"""The attack on STRIP itself: blends of stamped images are trained to be anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import Attack, Images, Labels, Material, Poisoning
from calibration.attacks.wrapping import Wrapped, require_relabelling

__all__ = ["EntropyManipulating"]


@dataclass(frozen=True, eq=False)
class EntropyManipulating(Wrapped):
    r"""Another attack plus randomly labelled blends of what it poisons. For making test subjects only.

    Each poisoned image is added ``copies`` more times to the training set, each time superimposed with an
    image drawn at random and labelled at random,

    .. math:: \mathrm{clip}(w_x T(x) + w_o o, 0, 1) \mapsto y, \qquad y \sim U\{0, \dots, k - 1\},

    so that the model keeps the trigger but forgets it once something lies over it: the entropy that STRIP
    measures is then as high for stamped images as for clean ones. The blends are the plan's covers, at the
    end of the set.

    Args:
        trigger: The attack whose trigger and target are used; one that relabels.
        classes: The number k of classes.
        overlays: Images to draw from, float32 NCHW in [0, 1]. Needed to poison, not to stamp, so they are
            not saved with the trigger.
        copies: Blends for each poisoned image.
        weights: The factors of stamped image and overlay.

    Raises:
        ValueError: If there are no copies or too few classes, or the trigger does not relabel.

    References:
        Gao et al., STRIP, ACSAC 2019, arXiv 1902.06531, section "Entropy Manipulation": ten copies.

    Deviations:
        The sum is clipped to [0, 1], the range of every image here; the paper adds without clipping. The
        wrapped trigger's own covers are left out.
    """

    name: ClassVar[str] = "entropy_manipulating"
    outermost: ClassVar[bool] = True

    trigger: Attack
    classes: int
    overlays: Float32[np.ndarray, "m c h w"] | None = field(default=None, metadata={"saved": False})
    copies: int = 10
    weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        require_relabelling(self.trigger, self.name)
        for name, least in (("copies", 1), ("classes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        trigger: Attack,
        copies: int = 10,
        weights: tuple[float, float] = (1.0, 1.0),
        bank: int = 2000,
    ) -> EntropyManipulating:
        """Return the attack with up to ``bank`` of the material's images as overlays."""
        rows = generator.permutation(len(material.images))[:bank]
        return cls(trigger, material.classes, material.images[rows], copies, weights)

    def plan(self, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoning:
        """Choose as the wrapped attack does, and add rows for the blends with labels drawn at random."""
        plan = self.trigger.plan(labels, rate, generator)
        blended = np.repeat(plan.index, self.copies)
        random_labels = generator.integers(self.classes, size=len(blended), dtype=np.int64)
        return Poisoning(
            labels=np.concatenate([plan.labels, random_labels]),
            index=plan.index,
            covers=len(labels) + np.arange(len(blended), dtype=np.int64),
            source=np.concatenate([plan.source, blended]),
        )

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies with the trigger, each superimposed with an overlay drawn at random.

        Raises:
            ValueError: If the attack has no overlays, as after loading.
        """
        if self.overlays is None:
            raise ValueError("overlays: none here, as after loading; fit the attack again to poison with it")
        drawn = self.overlays[generator.integers(len(self.overlays), size=len(images))]
        stamped, overlaid = (np.float32(weight) for weight in self.weights)
        blended: Images = np.clip(stamped * self.imprint(images) + overlaid * drawn, 0, 1)
        return blended
