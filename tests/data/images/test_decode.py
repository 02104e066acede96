"""Images of every mode become RGB."""

import numpy as np
import pytest
from helpers.pictures import encoded, load_images
from PIL import Image

from optin_cli.data.images.decode import decode_image

RED = (200, 40, 10)


def cmyk():
    return Image.new("RGB", (8, 8), RED).convert("CMYK")


def palette(**options):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", **options)


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encoded(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
        (encoded(Image.new("LA", (8, 8), (77, 0)), "PNG"), (77, 77, 77)),
        (encoded(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (8, 8), (*RED, 0)), "PNG"), RED),
        (palette(), RED),
        (palette(transparency=b"\xff\x00"), RED),
        (encoded(cmyk(), "TIFF"), RED),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)), "PNG"), (100, 100, 100)),
        (encoded(Image.fromarray(np.full((8, 8), 65535, np.uint16)), "TIFF"), (255, 255, 255)),
        (encoded(Image.new("RGB", (8, 8), RED), "BMP"), RED),
        (encoded(Image.new("RGB", (8, 8), RED), "WEBP", lossless=True), RED),
        (encoded(Image.new("P", (8, 8), 0), "GIF"), (0, 0, 0)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, content, colour):
    image = decode_image(content, "a")
    assert image.mode == "RGB" and image.size == (8, 8)
    assert image.getpixel((3, 3)) == colour
    (tmp_path / "a.png").write_bytes(content)
    assert not load_images(tmp_path).skipped


def test_cmyk_jpeg_is_close(tmp_path):
    colour = decode_image(encoded(cmyk(), "JPEG", quality=95), "a").getpixel((3, 3))
    assert np.abs(np.subtract(colour, RED)).max() < 10
