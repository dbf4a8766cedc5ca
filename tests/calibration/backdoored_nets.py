"""A network made by hand whose backdoor is known: nothing is trained, so the answer is certain."""

import torch
from torch import Tensor, nn

SIDE = 8
CLASSES = 5
TARGET = 3


class CornerNet(nn.Module):
    """Five classes by which fifth of the pixels is bright; a bright lower right corner of 2 x 2 adds to one.

    Every 2 x 2 pixels hold at most one of a class, so a small patch elsewhere does next to nothing, and clean
    images leave the corner's detector far below what it takes. With a gain of 0 there is no backdoor.
    """

    def __init__(self, gain: float = 40.0, target: int = TARGET) -> None:
        super().__init__()
        self.classes = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
        self.detector = nn.Conv2d(1, 1, 2, bias=False)
        self.gain, self.target = gain, target
        with torch.no_grad():
            self.detector.weight.fill_(0.25)
            self.classes.weight.copy_(torch.arange(CLASSES)[:, None] == _class_of_pixel())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        corner = self.detector(images)[:, 0, -1, -1]
        one = torch.arange(CLASSES) == self.target
        return self.classes(images.flatten(1)) + self.gain * corner[:, None] ** 3 * one


def striped(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images from 0 to 1, faint noise but for the bright pixels of each class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = 0.2 * torch.rand((count, SIDE * SIDE), generator=generator)
    images = noise + 0.75 * (labels[:, None] == _class_of_pixel())
    return images.view(count, 1, SIDE, SIDE), labels


def _class_of_pixel() -> Tensor:
    return torch.arange(SIDE * SIDE) % CLASSES
