"""A network small enough to train in a blink, and data that it can learn."""

import torch
from torch import Tensor, nn

from calibration.augmentation import NO_AUGMENTATION
from calibration.recipe import Recipe
from calibration.training import TrainingData

QUICK = Recipe(epochs=3, batch=16, rate=0.1, precision="float32", augmentation=NO_AUGMENTATION)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tiny(nn.Module):
    """A convolution with batch norm, the mean over space, a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.5, 0.5, generator=seeded(seed))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.convolution(images))).mean(dim=(2, 3)))


def bright_or_dark(count: int = 64, seed: int = 0) -> TrainingData:
    """8-bit noise, dark for class 0 and bright for class 1."""
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, 3, 8, 8), generator=seeded(seed))
    return TrainingData((noise + 120 * labels[:, None, None, None]).to(torch.uint8), labels)
