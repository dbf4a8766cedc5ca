import pytest

torch = pytest.importorskip("torch")

from calibration.augmentation import NO_AUGMENTATION, Augmentation, augment  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, side: int = 6) -> torch.Tensor:
    """Images whose pixels are all different and none 0."""
    one = torch.arange(1, 2 * side * side + 1, dtype=torch.uint8).view(1, 2, side, side)
    return one.repeat(count, 1, 1, 1)


def test_nothing_asked_is_nothing_done_or_drawn() -> None:
    generator, images = seeded(), numbered(3)
    assert torch.equal(augment(images, NO_AUGMENTATION, generator), images)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_each_crop_is_one_window_of_the_padded_image() -> None:
    padded = torch.nn.functional.pad(numbered(1), (2,) * 4)[0]
    windows = {
        padded[:, top : top + 6, left : left + 6].numpy().tobytes() for top in range(5) for left in range(5)
    }
    crops = augment(numbered(400), Augmentation(padding=2, flip=False), seeded())
    assert {crop.numpy().tobytes() for crop in crops} == windows


def test_about_half_are_mirrored_and_the_rest_left() -> None:
    images = numbered(1000)
    flipped = augment(images, Augmentation(padding=0), seeded())
    same = (flipped == images).flatten(1).all(1)
    assert torch.equal(flipped[~same], images[~same].flip(3))
    assert 450 < int(same.sum()) < 550


# An even side as NAD's Cutout(1, 3), which blanks 2x2; squares are cut off where they stick out.
@pytest.mark.parametrize(("side", "smallest"), [(1, 1), (2, 1), (3, 4), (4, 4)])
def test_cutout_blanks_one_square_in_every_channel(side: int, smallest: int) -> None:
    images = numbered(500, side=8)
    holes = augment(images, Augmentation(padding=0, flip=False, cutout=side), seeded()) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    areas = holes[:, 0].flatten(1).sum(1)
    assert (int(areas.min()), int(areas.max())) == (smallest, side**2)
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, areas)


def test_images_are_copied_and_their_type_kept() -> None:
    for images in (numbered(4), numbered(4).float()):
        before = images.clone()
        assert augment(images, Augmentation(2, True, 3), seeded()).dtype == images.dtype
        assert torch.equal(images, before)


def test_one_seed_is_one_augmentation() -> None:
    everything = Augmentation(2, True, 3)
    first, second, third = (augment(numbered(50), everything, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("field", ["padding", "cutout"])
def test_negative_lengths_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected 0 pixels or more, got -1$"):
        Augmentation(**{field: -1})
