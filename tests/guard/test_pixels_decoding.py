"""Encoded images into pixels: what is defined, and what is refused before and while it is decoded."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guard.errors import InvalidRequestError
from guard.pixels.decoding import decode_image, encode_png
from guard.pixels.structure import png_is_whole, scans_of
from tests.guard.image_files import chunk, encoded, noise, orientation_of, picture, png_declaring, turned

PIXELS = noise((6, 5))


def decoded(blob: bytes, channels: int = 3, **options: bool) -> np.ndarray:
    return decode_image(blob, "image 0", channels=channels, max_pixels=64, **options)


def refusal(blob: bytes, channels: int = 3, **options: bool) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        decoded(blob, channels, **options)
    return str(refused.value)


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 3, 4]), st.integers(0, 2**32 - 1))
def test_a_png_gives_back_the_pixels_that_it_was_made_of(
    height: int, width: int, channels: int, seed: int
) -> None:
    pixels = noise((height, width), channels, seed)

    np.testing.assert_array_equal(decoded(encode_png(pixels), channels), pixels)


def test_a_jpeg_gives_what_its_decoder_says() -> None:
    blob = encoded(PIXELS, "JPEG")

    got = decoded(blob)

    assert got.shape == (6, 5, 3)
    assert np.abs(got.astype(int) - PIXELS.astype(int)).mean() < 64  # the same picture, and lossy


CONVERSIONS = {
    "grey becomes three equal channels": (
        encoded(PIXELS[..., :1]),
        np.repeat(PIXELS[..., :1], 3, axis=2),
    ),
    "grey with alpha loses it": (
        encoded(Image.fromarray(PIXELS[..., 0]).convert("LA")),
        np.repeat(PIXELS[..., :1], 3, axis=2),
    ),
    "alpha is left out, and nothing is laid under it": (encoded(noise((6, 5), 4)), noise((6, 5), 4)[..., :3]),
    "a palette is looked up": (
        encoded(picture(np.repeat(PIXELS[..., :1], 3, axis=2)).quantize(256)),
        np.repeat(PIXELS[..., :1], 3, axis=2),
    ),
    "black and white becomes 0 and 255": (
        encoded(Image.fromarray(PIXELS[..., 0]).convert("1", dither=Image.Dither.NONE)),
        np.repeat(np.where(PIXELS[..., :1] >= 128, 255, 0), 3, axis=2),
    ),
    "CMYK becomes RGB by its plain formula": (
        encoded(Image.new("CMYK", (5, 6), (0, 0, 0, 255)), "JPEG", quality=100),
        np.zeros((6, 5, 3), np.uint8),
    ),
}


@pytest.mark.parametrize("case", CONVERSIONS)
def test_every_kind_of_image_has_its_conversion(case: str) -> None:
    blob, expected = CONVERSIONS[case]

    np.testing.assert_array_equal(decoded(blob), expected)


def test_a_grey_model_takes_grey_alone() -> None:
    np.testing.assert_array_equal(decoded(encoded(PIXELS[..., :1]), 1), PIXELS[..., :1])
    assert refusal(encoded(PIXELS), 1) == (
        "image 0 is an image of mode RGB, and the model takes 1 channel(s) of 8 bits; convert it to grey"
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_ignored_unless_it_is_to_be_applied(orientation: int) -> None:
    blob, plain = turned(PIXELS, orientation), decoded(turned(PIXELS, 1))

    np.testing.assert_array_equal(decoded(blob), plain)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # by 90 degrees, against the clock
    np.testing.assert_array_equal(decoded(blob, upright=True), np.rot90(plain, turns))


def test_of_several_pictures_in_a_jpeg_the_first_is_taken() -> None:
    several = encoded(picture(PIXELS), "MPO", save_all=True, append_images=[picture(255 - PIXELS)])

    np.testing.assert_array_equal(decoded(several), decoded(encoded(PIXELS, "JPEG")))


REFUSED = {
    "nothing": (b"", "image 0: expected a whole JPEG or PNG file, got nothing; encode it as one of them"),
    "text": (b"not an image", "got 12 bytes that begin with b'not an i'; encode it as one of them"),
    "GIF": (encoded(PIXELS, "GIF"), "expected a whole JPEG or PNG file, got GIF"),
    "BMP": (encoded(PIXELS, "BMP"), "got BMP"),
    "TIFF": (encoded(PIXELS, "TIFF"), "got TIFF"),
    "WebP": (encoded(PIXELS, "WEBP"), "got WebP"),
    "JPEG cut off": (encoded(PIXELS, "JPEG")[:-20], "cannot be decoded (image file is truncated"),
    "PNG cut off": (encoded(PIXELS)[:60], "is a PNG file that ends early"),
    "PNG without its end": (encoded(PIXELS)[:-12], "is a PNG file that ends early"),
    "PNG of wrong sums": (encoded(PIXELS).replace(b"IDAT\x78", b"IDAT\x79"), "cannot be decoded ("),
    "animated PNG": (
        encoded(picture(PIXELS), save_all=True, append_images=[picture(255 - PIXELS)]),
        "is an animated PNG; send one still image",
    ),
    "16 bits, grey": (
        encoded(Image.fromarray(np.full((6, 5), 40_000, np.uint16))),
        "is a PNG of 16 bits a channel, expected at most 8",
    ),
    "16 bits, colour": (
        png_declaring(2, 2, depth=16, data=bytes(2 * 13)),
        "is a PNG of 16 bits a channel, expected at most 8",
    ),
    "too many pixels by one": (
        encoded(noise((13, 5))),
        "image 0 declares 5 x 13 pixels, expected at most 64 pixels",
    ),
    "a bomb": (png_declaring(9_000, 9_000), "declares 9000 x 9000 pixels, expected at most 64 pixels"),
    "a bomb beyond Pillow's limit": (png_declaring(2**16, 2**16), "exceeds limit"),
    "no pixels": (png_declaring(0, 4), "expected a whole JPEG or PNG file, got 65 bytes"),
    "a bomb that Pillow warns of": (png_declaring(10_000, 10_000), "exceeds limit"),
    "negative": (png_declaring(2**32 - 1, 2**32 - 1), "exceeds limit"),
    "text that unpacks to more than Pillow reads": (
        encoded(PIXELS)[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))) + encoded(PIXELS)[33:],
        "cannot be decoded (Decompressed data too large",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_plain_image_is_refused_and_says_so(case: str) -> None:
    blob, words = REFUSED[case]

    assert words in refusal(blob)


def test_a_bomb_is_refused_before_anything_of_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)

    assert "declares 9000 x 9000 pixels" in refusal(png_declaring(9_000, 9_000))


def without_adobe(blob: bytes) -> bytes:
    """Return a JPEG without Adobe's marker, if it has one."""
    at = blob.find(b"\xff\xee\x00\x0eAdobe")
    return blob if at < 0 else blob[:at] + blob[at + 16 :]


def test_plain_images_pass_where_odd_ones_are_refused() -> None:
    for form in ("PNG", "JPEG"):
        assert decoded(encoded(PIXELS, form), plain=True).shape == (6, 5, 3)
    assert decoded(encoded(PIXELS[..., :1], "JPEG"), plain=True).shape == (6, 5, 3)
    assert decoded(encoded(picture(PIXELS).quantize(8)), plain=True).shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("blob", "what"),
    [
        (encoded(noise((6, 5), 4)), "with transparency"),
        (encoded(Image.fromarray(PIXELS[..., 0]).convert("LA")), "with transparency"),
        (encoded(picture(PIXELS).quantize(8), transparency=0), "with transparency"),
        (encoded(PIXELS, transparency=(1, 2, 3)), "with transparency"),
        (encoded(Image.new("CMYK", (5, 6)), "JPEG"), "of CMYK colours"),
        (encoded(PIXELS, "JPEG", keep_rgb=True), "of colours stored as RGB in a JPEG"),
        (without_adobe(encoded(PIXELS, "JPEG", keep_rgb=True)), "of colours stored as RGB in a JPEG"),
    ],
    ids=["RGBA", "LA", "palette", "one colour", "CMYK", "Adobe's RGB", "components R, G, B"],
)
def test_what_programs_decode_differently_is_refused_where_another_decodes_too(
    blob: bytes, what: str
) -> None:
    assert decoded(blob).shape == (6, 5, 3)
    assert f"image 0 is an image {what}, which programs decode differently" in refusal(blob, plain=True)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "blob",
    [encoded(PIXELS, "JPEG", xmp=XMP), encoded(PIXELS, exif=orientation_of(6))],
    ids=["XMP", "EXIF of a PNG"],
)
def test_turned_by_what_programs_do_not_all_read_is_refused_where_another_decodes_too(blob: bytes) -> None:
    assert decoded(blob, upright=True).shape == (5, 6, 3)
    assert "turned by something else than a JPEG's EXIF, which programs" in refusal(
        blob, upright=True, plain=True
    )
    assert decoded(blob, plain=True).shape == (6, 5, 3)
    assert decoded(turned(PIXELS, 6), plain=True, upright=True).shape == (5, 6, 3)


def with_scans(blob: bytes, more: int) -> bytes:
    """Return a progressive JPEG whose last scan comes so many times more."""
    last = blob[blob.rindex(b"\xff\xda") : -2]
    return blob[:-2] + last * more + b"\xff\xd9"


def test_a_jpeg_that_is_gone_over_again_and_again_is_refused() -> None:
    progressive = encoded(PIXELS, "JPEG", progressive=True)
    scans = scans_of(progressive)

    assert 5 < scans < 15
    assert decoded(with_scans(progressive, 100 - scans)).shape == (6, 5, 3)
    assert "image 0 is a JPEG of 101 scans, expected at most 100; save it anew" in refusal(
        with_scans(progressive, 101 - scans)
    )


def test_scans_are_counted_in_the_image_alone_not_in_what_lies_beside_it() -> None:
    pixels = noise((40, 40))
    thumbnail = encoded(pixels, "JPEG", progressive=True)

    blob = encoded(pixels, "JPEG", comment=thumbnail, restart_marker_blocks=1) + thumbnail

    assert scans_of(blob) == 1
    assert scans_of(thumbnail) > 5
    assert scans_of(encoded(pixels)) >= 0, "of another format, and it ends"


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_png_whose_data_end_before_its_rows_do_is_refused(rows: int) -> None:
    whole, row = png_declaring(5, 4, data=(b"\0" + bytes(15)) * 4), b"\0" + bytes([200] * 15)

    assert not decoded(whole).any(), "a black image is one"
    assert "is a PNG file that ends early" in refusal(png_declaring(5, 4, data=row * rows))
    assert "image file is truncated" in refusal(png_declaring(5, 4, data=row * 3 + row[:-1]))


# An image of Adam7 interlacing, 9 x 9 in grey: the bytes of its passes by their rows and columns.
PASSES = [(2, 2), (1, 2), (3, 1), (2, 3), (5, 2), (4, 5), (9, 4)]
ADAM7 = b"".join((b"\0" + bytes(wide)) * high for wide, high in PASSES)


def interlaced(data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_an_interlaced_png_is_whole_with_the_last_of_its_passes() -> None:
    assert png_is_whole(interlaced(ADAM7))
    assert not png_is_whole(interlaced(ADAM7[:-1]))
    with pytest.raises(InvalidRequestError, match="ends early"):
        decode_image(interlaced(ADAM7[:-10]), "image 0", channels=1, max_pixels=81)
    assert decode_image(interlaced(ADAM7), "image 0", channels=1, max_pixels=81).shape == (9, 9, 1)


@settings(max_examples=150)
@given(
    st.sampled_from([encoded(PIXELS), encoded(PIXELS, "JPEG")]),
    st.integers(0, 2000),
    st.binary(min_size=1, max_size=4),
)
def test_a_damaged_file_is_refused_or_is_an_image_and_nothing_else(
    blob: bytes, at: int, damage: bytes
) -> None:
    at %= len(blob)
    damaged = blob[:at] + damage + blob[at + len(damage) :]

    with suppress(InvalidRequestError):
        got = decoded(damaged)
        assert got.dtype == np.uint8
        assert got.size <= 64 * 3


@settings(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(0, 2000))
def test_no_file_that_was_cut_off_is_taken(form: str, length: int) -> None:
    blob = encoded(PIXELS, form)

    assert "image 0" in refusal(blob[: length % len(blob)])
