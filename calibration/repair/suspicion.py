"""What moves a network most, and to which label: perturbations that a backdoor answers and little else does.

Theory of operation. Any network can be led to any label by a perturbation that is strong enough; one with a
backdoor is led to the backdoor's label by perturbations that are too weak for every other label. So for each
of several families, each kept weak, the best perturbation for every label is sought (faint noise, slow
shades, small patches, by gradients) or chosen from a fixed set (waves, reflections of other clean images),
and what the label that is reached best gains over the runner-up is the family's evidence. The labels with
most evidence are looked at more closely, and whatever gains over the runner-up in its family is to be
unlearned, the more it gains the more often. A share goes to what moves the network at all, to every label by
how well it is reached: a weak network is moved far by many things and hides a backdoor among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from calibration.progress import Progress
from calibration.recipe import Precision
from calibration.repair.perturbations import Perturbations, Range, joined
from calibration.repair.seeking import Search, Suspicion

__all__ = ["Suspects", "Suspicion", "both", "gains_of", "suspect", "weights_of"]

CLOSER = 2
"""Labels that are looked at more closely, each twice."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """What is to be unlearned.

    Attributes:
        label: The label with most evidence.
        shares: By family, how much of the unlearning goes to it.
        perturbations: Those that are to be unlearned at all.
        weights: How often each is to be unlearned; they sum to 1.
        images: Images that were sent through the network.
    """

    label: int
    shares: dict[str, float]
    perturbations: Perturbations
    weights: Float32[Tensor, " p"]
    images: int


def suspect(
    model: nn.Module,
    images: Float32[Tensor, "n c h w"],
    ends: Range,
    classes: int,
    options: Suspicion,
    *,
    generator: torch.Generator,
    precision: Precision = "float32",
    quiet: bool = True,
) -> Suspects:
    """Return what moves a network most; the network is left as it was.

    Args:
        model: In evaluation mode, asking for no gradients.
        images: Clean ones, as the network takes them.
        ends: Of its values.
        classes: k.
        options: How to seek.
        generator: Draws images and starts, on the CPU.
        precision: What the network computes in.
        quiet: Show no progress bar.
    """
    with Progress(0, "suspect", quiet) as bar:
        search = Search(model, ends.unit(images), ends, options, generator, precision, bar)
        coarse = search.all_families(torch.arange(classes), reflected=options.reflected, waves=True)
        evidence = torch.stack([_evidence(family, classes) for family in coarse]).sum(0)
        closer = evidence.topk(min(CLOSER, classes)).indices.repeat(2)
        fine = search.all_families(closer, reflected=5 * options.reflected, waves=False)
    families = [
        joined([part for part in (*coarse, *fine) if part.family == family.family], family.family)
        for family in coarse
    ]
    weights = torch.cat(weights_of(families, classes, options.floor))
    chosen = weights.nonzero()[:, 0]
    ends_at = [0, *accumulate(map(len, families))]
    shares = {
        family.family: float(weights[start:end].sum())
        for family, (start, end) in zip(families, pairwise(ends_at), strict=True)
    }
    return Suspects(
        int(evidence.argmax()), shares, joined(families, "all").take(chosen), weights[chosen], search.images
    )


def both(before: Suspects, now: Suspects) -> Suspects:
    """Return what two searches found, half of the unlearning going to each."""
    return Suspects(
        now.label,
        now.shares,
        joined([before.perturbations, now.perturbations], "all"),
        torch.cat([before.weights, now.weights]) / 2,
        now.images,
    )


def weights_of(families: Sequence[Perturbations], classes: int, floor: float) -> list[Float32[Tensor, " p"]]:
    """Return how often each perturbation is to be unlearned; all of them sum to 1.

    Args:
        families: With rates and labels.
        classes: k.
        floor: Share that goes to what moves the network at all: in each family to a label by the square of
            the best rate at which it is reached. The rest goes by the square of what is gained over the
            runner-up; where nothing gains anything, all is the floor's.
    """
    gains = [gains_of(family, classes).square() for family in families]
    moves = [_moves_of(family, classes) for family in families]
    total, moved = (sum(float(one.sum()) for one in ones) for ones in (gains, moves))
    alike = floor if total > 0 else 1.0
    return [
        (1 - alike) * gain / max(total, 1e-12) + alike * move / moved
        for gain, move in zip(gains, moves, strict=True)
    ]


def _moves_of(family: Perturbations, classes: int) -> Float32[Tensor, " p"]:
    """Return how much each perturbation moves the network; the best of a label counts for all of them."""
    powers = family.rates.pow(4) + 1e-12
    best = torch.zeros(classes).scatter_reduce(0, family.labels, family.rates, "amax")
    whole = torch.zeros(classes).scatter_add(0, family.labels, powers)
    return (best.square() + 1e-6)[family.labels] * powers / whole[family.labels]


def gains_of(family: Perturbations, classes: int) -> Float32[Tensor, " p"]:
    """Return how much better each perturbation reaches its label than any reaches another; 0 where none.

    Only those to the label that is reached best gain anything.

    Args:
        family: With rates and labels.
        classes: k.
    """
    best = torch.zeros(classes).scatter_reduce(0, family.labels, family.rates, "amax")
    runner_up = best.topk(min(2, classes)).values[-1]
    return (family.rates - runner_up).clamp_min(0)


def _evidence(family: Perturbations, classes: int) -> Float32[Tensor, " k"]:
    """Return for each label the most that a perturbation to it gains."""
    return torch.zeros(classes).scatter_reduce(0, family.labels, gains_of(family, classes), "amax")
