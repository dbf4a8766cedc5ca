"""The picture of the clean entropies."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from calibration.picture import entropy_picture, score_picture
from calibration.threshold import conformal_boundary, normal_boundary, score_boundary

SCORES = np.random.default_rng(0).gamma(6.0, 0.2, 400)
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour[:3] for _, colour in picture.convert("RGB").getcolors(2**20) or []}


def test_it_is_a_png_of_readable_size_in_hues_that_stay_apart() -> None:
    content = entropy_picture(SCORES, conformal_boundary(SCORES, 0.05, 0.05), "a model")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert picture.size == (960, 540)
        assert {BLUE, VERMILION} <= colours(picture)


def test_the_same_scores_give_the_same_bytes_and_others_do_not() -> None:
    guaranteed, hoped_for = conformal_boundary(SCORES, 0.05, 0.05), normal_boundary(SCORES, 0.05)
    one = entropy_picture(SCORES, guaranteed, "a model")
    assert one == entropy_picture(SCORES, guaranteed, "a model")
    assert one != entropy_picture(SCORES, hoped_for, "a model")


def test_fused_scores_are_drawn_in_the_same_hues() -> None:
    content = score_picture(SCORES, score_boundary(SCORES, 0.05, 0.05), "a model")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (960, 540)
        assert {BLUE, VERMILION} <= colours(picture)
