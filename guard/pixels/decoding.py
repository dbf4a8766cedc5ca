"""JPEG and PNG files into 8-bit pixels, from people who may not mean well.

What is defined here holds for calibration and for serving alike: grey becomes three equal channels, palettes
are looked up, alpha is left out, CMYK becomes RGB by Pillow's plain formula, colour profiles are not applied.
Where another program decodes the same file for itself, whatever programs are known to decode differently
(alpha, CMYK, a JPEG that holds RGB, one turned by anything but a JPEG's EXIF) is refused.

Nothing is decoded before the size that the file declares was seen to be within the limit.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from guard.errors import InvalidRequestError
from guard.pixels.structure import png_is_whole, scans_of

__all__ = [
    "COLOUR_MODES",
    "GRAY_MODES",
    "decode_image",
    "encode_png",
    "encode_turned",
    "pixels_of",
    "target_mode",
]

GRAY_MODES: Final = frozenset({"1", "L", "LA"})
COLOUR_MODES: Final = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})

_FORMATS: Final = ("JPEG", "PNG")
_PNG_HEADER_AT: Final = slice(12, 16)  # behind the signature and a length
_PNG_DEPTH_AT: Final = 24  # behind width and height
_PNG_END: Final = b"IEND\xaeB`\x82"
_MAX_SCANS: Final = 100  # of a JPEG; progressive ones have about 10, and each costs a pass over all pixels
_ORIENTATION: Final = 0x0112
_KNOWN: Final = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"\0\0\0": "HEIF or AVIF",
}


def decode_image(
    blob: bytes, where: str, *, channels: int, max_pixels: int, upright: bool = False, plain: bool = False
) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an encoded image; blocks for as long as decoding takes.

    Args:
        blob: The file.
        where: Its name, for errors.
        channels: 1, 3 or 4, as the model takes.
        max_pixels: Most pixels that it may declare.
        upright: Whether it is turned as its EXIF orientation says, rather than taken as stored.
        plain: Whether images are refused that other programs decode differently.

    Raises:
        InvalidRequestError: If it is no JPEG or PNG, too large, animated, broken, or does not fit the model.
    """
    try:
        with _open(blob, where) as image:
            _check_size(image, where, max_pixels)
            _check_kind(image, blob, where, plain=plain)
            mode = target_mode(image.mode, channels)
            if mode is None:
                raise _unfit(image.mode, channels, where)
            image.load()
            _check_rows(image, blob, where)
            if upright:
                _check_turn(image, where, plain=plain)
            turned = ImageOps.exif_transpose(image) if upright else image
            return pixels_of(turned, mode, channels)
    except (InvalidRequestError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file makes a decoder raise is the file's fault
        raise InvalidRequestError(
            f"{where} cannot be decoded ({_first_line(error)}); send a whole JPEG or PNG file"
        ) from error


def pixels_of(image: Image.Image, mode: str, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an opened image in one of the modes ``L``, ``RGB`` and ``RGBA``."""
    pixels = np.asarray(image.convert(mode), np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def target_mode(mode: str, channels: int) -> str | None:
    """Return the mode that an image of Pillow's ``mode`` is converted to; None where it does not fit a model.

    Args:
        mode: Of the file.
        channels: That the model takes.

    Examples:
        >>> [target_mode(mode, 3) for mode in ("L", "CMYK", "I;16")]
        ['RGB', 'RGB', None]
        >>> target_mode("RGB", 1) is None
        True
    """
    if channels == 1 and mode in GRAY_MODES:
        return "L"
    if channels == 3 and mode in GRAY_MODES | COLOUR_MODES:
        return "RGB"
    if channels == 4 and mode == "RGBA":
        return "RGBA"
    return None


def encode_png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Return pixels of 1, 3 or 4 channels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def encode_turned(pixels: UInt8[np.ndarray, "h w c"], orientation: int) -> bytes:
    """Return pixels of 1 or 3 channels as a JPEG with an orientation by EXIF."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[_ORIENTATION] = orientation
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def _open(blob: bytes, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(blob), formats=_FORMATS)
    except UnidentifiedImageError as error:
        known = next((name for start, name in _KNOWN.items() if blob.startswith(start)), None)
        got = known or (f"{len(blob)} bytes that begin with {blob[:8]!r}" if blob else "nothing")
        raise InvalidRequestError(
            f"{where}: expected a whole JPEG or PNG file, got {got}; encode it as one of them"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequestError(f"{where}: {_first_line(error)}; send a smaller image") from error


def _check_size(image: Image.Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidRequestError(
            f"{where} declares {width} x {height} pixels, expected at most {max_pixels} pixels; "
            f"send a smaller image"
        )


def _check_kind(image: Image.Image, blob: bytes, where: str, *, plain: bool) -> None:
    if image.format == "PNG":
        _check_png(image, blob, where)
    elif scans_of(blob) > _MAX_SCANS:
        raise InvalidRequestError(
            f"{where} is a JPEG of {scans_of(blob)} scans, expected at most {_MAX_SCANS}; save it anew"
        )
    if not plain:
        return
    odd = {
        "with transparency": image.has_transparency_data,
        "of CMYK colours": image.mode == "CMYK",
        "of colours stored as RGB in a JPEG": image.mode == "RGB" and _holds_rgb(image),
    }
    for what, is_so in odd.items():
        if is_so:
            raise _ambiguous(what, where)


def _check_turn(image: Image.Image, where: str, *, plain: bool) -> None:
    """Refuse an orientation that Pillow finds and others do not look for: in XMP, in text, in a PNG."""
    if not plain or image.getexif().get(_ORIENTATION, 1) == 1:
        return
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    if image.format == "PNG" or _ORIENTATION not in exif:
        raise _ambiguous("turned by something else than a JPEG's EXIF", where)


def _ambiguous(what: str, where: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where} is an image {what}, which programs decode differently, so that what is checked may "
        f"not be what the model server sees; save it as a plain RGB or grey image"
    )


def _holds_rgb(image: Image.Image) -> bool:
    """Whether a JPEG says, by Adobe's marker or its components' names, that it holds RGB, not YCbCr."""
    names = bytes(layer[0] for layer in getattr(image, "layer", ()))
    return image.info.get("adobe_transform") == 0 or names == b"RGB"


def _check_png(image: Image.Image, blob: bytes, where: str) -> None:
    if getattr(image, "custom_mimetype", None) == "image/apng":
        raise InvalidRequestError(f"{where} is an animated PNG; send one still image")
    if blob[_PNG_HEADER_AT] != b"IHDR" or blob[_PNG_DEPTH_AT] not in {1, 2, 4, 8}:
        raise InvalidRequestError(
            f"{where} is a PNG of {blob[_PNG_DEPTH_AT]} bits a channel, expected at most 8; convert it"
        )
    if _PNG_END not in blob:
        raise InvalidRequestError(f"{where} is a PNG file that ends early; send a whole JPEG or PNG file")


def _check_rows(image: Image.Image, blob: bytes, where: str) -> None:
    """Refuse a PNG whose data end before its rows do, which Pillow fills up with zeros."""
    if image.format != "PNG" or (not image.info.get("interlace") and np.asarray(image)[-1].any()):
        return
    if not png_is_whole(blob):
        raise InvalidRequestError(f"{where} is a PNG file that ends early; send a whole JPEG or PNG file")


def _unfit(mode: str, channels: int, where: str) -> InvalidRequestError:
    wanted = {1: "grey", 3: "RGB or grey"}.get(channels, "RGBA")
    return InvalidRequestError(
        f"{where} is an image of mode {mode}, and the model takes {channels} channel(s) of 8 bits; "
        f"convert it to {wanted}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
