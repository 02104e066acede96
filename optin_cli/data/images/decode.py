"""Decode image files to RGB, as torchvision and timm do for training and evaluation.

Grayscale, palette and CMYK images become RGB; transparency is dropped, an animation's first frame taken, and an
orientation that a camera noted is not applied. 16-bit values become 8-bit ones by their share of the range.
"""

import io
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from optin_cli.errors import DataError, first_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is tried, whatever a file's ending: of Pillow's others some run programs, and none holds photographs."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
SIXTEEN_BIT = ("PNG", "PPM")
"""Formats whose images of 32-bit integers hold 16-bit values."""
NUMBERED = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of one whole number a pixel."""


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode a whole file, which messages call `name`, to an image of mode RGB (DataError where it does not decode)."""
    try:
        return _as_rgb(_open(content))
    except Exception as error:  # Pillow's plugins raise whatever a malformed file makes them trip over
        raise DataError(f"The image {name} cannot be decoded: {_reason(error)}.") from error


def size_of_image(content: bytes, name: str) -> tuple[int, int]:
    """Height and width of an image, from its header (DataError where that cannot be read)."""
    try:
        image = _open(content)
    except Exception as error:
        raise DataError(f"The image {name} cannot be decoded: {_reason(error)}.") from error
    return image.height, image.width


def decode_numbers(content: bytes, name: str) -> NDArray[Any]:
    """Decode an image of one number a pixel, (height, width): those of a palette are its indices, not its colours.

    Raises DataError: the file does not decode, or holds colours.
    """
    try:
        image = _open(content)
        numbers = numpy.asarray(image)
    except Exception as error:
        raise DataError(f"The label map {name} cannot be decoded: {_reason(error)}.") from error
    if image.mode not in NUMBERED:
        raise DataError(
            f"The label map {name} holds colours (mode {image.mode}); expected one number a pixel, the id of its "
            "class.",
            hint="Save it as a grayscale PNG of class ids, or as a PNG with a palette, whose indices are the ids.",
        )
    return numbers


def find_fault(content: bytes, *, max_ratio: float) -> str | None:
    """Why an image cannot be used, such as a ratio of sides above `max_ratio`; None where it can."""
    try:
        image = _open(content)
        _check_size(image, max_ratio)
        # JPEG data is read to its end either way; at an eighth of the size most arithmetic is left out.
        image.draft("RGB", (1, 1))
        _as_rgb(image)
    except Exception as error:  # noqa: BLE001
        return _reason(error)
    return None


def _open(content: bytes) -> ImageFile.ImageFile:
    if not content:
        raise DataError("the file is empty")
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _check_size(image: Image.Image, max_ratio: float) -> None:
    """Refuse what would fill the memory before anything is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    size = f"it has {image.width:,} x {image.height:,} pixels"
    if limit is not None and image.width * image.height > limit:
        raise DataError(f"{size}, more than the {limit:,} in all that Pillow takes for safe")
    if max(image.size) > max_ratio * min(image.size):
        raise DataError(f"{size}, a ratio above {max_ratio:g}")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT):
        # Pillow's own conversion keeps the values and clips them at 255, which leaves a white image.
        image = Image.fromarray(numpy.rint(numpy.asarray(image) / 257).astype(numpy.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"its pixels are 32-bit numbers (mode {image.mode}), whose range no one knows")
    elif "transparency" in image.info or image.mode.endswith("a"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return first_line(error).rstrip(".")
