"""Small image sets, made rather than kept: each class is a colour and a direction of stripes, plus noise."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.samples import load_image_samples
from optin_cli.data.spec import DataSpec
from optin_cli.options.images import ImageOptions
from optin_cli.progress import SILENT

CLASSES = ("amber", "blue", "coral")

COLOURS = {"amber": (220, 160, 40), "blue": (40, 60, 210), "coral": (240, 110, 90)}


def pixels(kind: str, seed: int, size: int = 16) -> np.ndarray:
    """(size, size, 3) uint8."""
    draw = np.random.default_rng([seed, CLASSES.index(kind)])
    rows, columns = np.indices((size, size))
    stripes = (rows if kind == "amber" else columns if kind == "blue" else rows + columns) % 4 < 2
    noise = draw.normal(0, 25, (size, size, 3))
    return np.clip(np.array(COLOURS[kind]) * (0.5 + 0.5 * stripes[..., None]) + noise, 0, 255).astype(np.uint8)


def png(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_folder(folder: Path, each: int = 4, *, first: int = 0, size: int = 16, classes=CLASSES) -> Path:
    """class/name.png, `each` a class."""
    for kind in classes:
        (folder / kind).mkdir(parents=True)
        for number in range(first, first + each):
            (folder / kind / f"{number}.png").write_bytes(png(pixels(kind, number, size)))
    return folder


def save_pictures(path, rows, splits=(), names=CLASSES):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    data = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(str(path))
    return data


def picture_rows(each=2):
    return [
        {"image": {"bytes": png(pixels(kind, n)), "path": None}, "label": i}
        for i, kind in enumerate(CLASSES)
        for n in range(each)
    ]


STRICT, LENIENT = ImageOptions(), ImageOptions(max_unreadable=0.5)


def load_images(folder, *, split="evaluation", task=None, data=None, options=STRICT, progress=SILENT, **more):
    folder = None if folder is None else str(folder)
    return load_image_samples(DataSpec(folder, data, known=task, role=split, images=options, **more), progress)


def tensor(image):
    """(3, height, width), 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def batches(samples, **options):
    options = {"input_name": "x", "batch_size": 4} | options
    return image_batches(samples, options.pop("preprocess", tensor), **options)
