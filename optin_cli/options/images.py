"""Options of reading images."""

import re
from dataclasses import dataclass
from typing import ClassVar

from optin_cli.errors import UsageError
from optin_cli.options.declare import DATA, MODEL, Checked, Option, option

IMAGE_SIZE = Option(
    "--image-size",
    "Height and width to work on.",
    metavar="HEIGHTxWIDTH",
    panel=MODEL,
    unset="what preprocessing makes",
)


def size_of(text: str) -> tuple[int, int]:
    """Height and width from 192x256 (UsageError if it is not such a text)."""
    found = re.fullmatch(r"([1-9]\d*)\s*x\s*([1-9]\d*)", text.strip())
    if found is None:
        raise UsageError(f"{IMAGE_SIZE.flag} {text!r} is no height and width.", hint="Such as 192x256.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class ImageOptions(Checked):
    """Options of reading images.

    max_unreadable: share of images (0 to 1) that may be skipped because they do not decode; more is an error.
    max_ratio: largest ratio of an image's longer side to its shorter one: preprocessing scales the shorter side up to
    the model's size, so that a strip of pixels would fill the memory. workers: threads that decode; None for as many
    as the process has processors. prefetch: batches that are decoded ahead of the model.
    """

    panel: ClassVar[str] = DATA
    max_unreadable: float = option(
        0.05,
        "--max-unreadable",
        "Share of images that may be skipped because they do not decode; more is an error.",
        metavar="SHARE",
        low=0,
        below=1,
    )
    max_ratio: float = option(200.0, low=1)
    workers: int | None = option(None, low=1)
    prefetch: int = option(2, low=1)
