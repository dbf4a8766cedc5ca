"""Triggers within a training loop: put on each batch after it was augmented, so that they are whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from calibration.attacks.base import Attack, Poisoning, Role, dress

__all__ = ["dressing"]

Finish = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def dressing(attack: Attack, plan: Poisoning) -> Finish:
    """Return what a training loop calls on each batch, after augmentation and before the network.

    It takes a batch, float32 NCHW in [0, 1] on any device, the rows of the poisoned set that it was made
    from, and a torch generator, and returns the batch with triggers on its poisoned rows and covers on its
    cover rows; the others are left as they are. Only those rows leave the device.

    Args:
        attack: The attack.
        plan: From ``attack.plan``. The loop runs over ``attack.prepare(images, plan)``, with
            ``plan.labels`` or ``plan.targets(classes)``.
    """
    roles = torch.from_numpy(plan.roles)

    def finish(
        batch: Float[Tensor, "b c h w"], rows: Int64[Tensor, " b"], generator: torch.Generator
    ) -> Float[Tensor, "b c h w"]:
        batch_roles = roles[rows.cpu()]
        touched = torch.nonzero(batch_roles != int(Role.CLEAN)).flatten()
        if not len(touched):
            return batch
        seed = int(torch.randint(2**62, (1,), generator=generator))
        places = touched.to(batch.device)
        images = batch[places].to("cpu", torch.float32).contiguous().numpy()
        dressed = dress(attack, images, batch_roles[touched].numpy(), np.random.default_rng(seed))
        return batch.index_copy(0, places, torch.from_numpy(dressed).to(batch))

    return finish
