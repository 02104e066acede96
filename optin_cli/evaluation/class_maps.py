"""Predicted classes of every pixel, held compressed: maps of a thousand images take a few dozen megabytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optin_cli.errors import DataError

FASTEST = 1
"""Level of compression: regions of one class compress well at any."""


@dataclass(frozen=True)
class ClassMap:
    """The class of every pixel of an image, (height, width)."""

    shape: tuple[int, int]
    content: bytes

    @classmethod
    def of(cls, classes: NDArray[np.integer]) -> ClassMap:
        """Compress classes below 65,536."""
        height, width = classes.shape
        return cls((height, width), zlib.compress(classes.astype(np.uint16).tobytes(), FASTEST))

    def classes(self) -> NDArray[np.uint16]:
        """(height, width) uint16."""
        return np.frombuffer(zlib.decompress(self.content), np.uint16).reshape(self.shape)


def agreement(maps: Sequence[ClassMap], others: Sequence[ClassMap]) -> float:
    """Share of the pixels of all images that have the same class in both (DataError: maps differ in size)."""
    same = total = 0
    for mine, theirs in zip(maps, others, strict=True):
        if mine.shape != theirs.shape:
            raise DataError(f"Label maps of the two models differ in size: {mine.shape} and {theirs.shape}.")
        same += int((mine.classes() == theirs.classes()).sum())
        total += mine.shape[0] * mine.shape[1]
    return same / total
