"""Small segmented images, made rather than kept: bands of colour, each a class, and tiny models that segment them."""

from pathlib import Path

import numpy as np
import transformers
from helpers.models import build
from helpers.pictures import png
from PIL import Image

from optin_cli.data.images.label_maps import LabelIds
from optin_cli.data.images.scene_samples import load_scene_samples
from optin_cli.data.spec import DataSpec

COLOURS = np.array([(220, 40, 40), (40, 200, 60), (50, 60, 220)], np.uint8)
IGNORED = 255
PROCESSORS = {
    "mask2former": "Mask2FormerImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "segformer": "SegformerImageProcessor",
    "upernet-convnext": "SegformerImageProcessor",
}
SIDE = 32
NAMES = ("brick", "grass", "water")
IDS = LabelIds(3, (IGNORED,), names=NAMES)


def scene(seed, height=20, width=30):
    """An image (height, width, 3) and its label map (height, width): bands of the three classes, one corner ignored."""
    draw = np.random.default_rng(seed)
    labels = np.full((height, width), 2, np.uint8)
    first, second = sorted(draw.choice(np.arange(2, width - 2), 2, replace=False))
    labels[:, :second], labels[:, :first] = 1, 0
    image = np.clip(COLOURS[labels] + draw.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    labels[:3, :3] = IGNORED
    return image, labels


def write_scene(image_file, label_file, seed, *, ids=None, **size):
    image, labels = scene(seed, **size)
    image_file.parent.mkdir(parents=True, exist_ok=True)
    label_file.parent.mkdir(parents=True, exist_ok=True)
    image_file.write_bytes(png(image))
    label_file.write_bytes(png(labels if ids is None else ids[labels]))


def scene_folder(folder, count=4, *, first=0, **options):
    """images/NUMBER.png and labels/NUMBER.png."""
    for number in range(first, first + count):
        write_scene(folder / "images" / f"{number}.png", folder / "labels" / f"{number}.png", number, **options)
    return folder


def cityscapes_folder(folder, *, ending="_gtFine_labelTrainIds", ids=None, splits=("train", "val")):
    """Cityscapes' own layout: two cities a split, and the other files that lie beside the label maps."""
    for split in splits:
        for number, city in enumerate(("aachen", "bonn")):
            name = f"{city}_000000_00001{number}"
            labels = folder / "gtFine" / split / city
            image = folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            write_scene(image, labels / f"{name}{ending}.png", len(split) + number, ids=ids)
            (labels / f"{name}_gtFine_color.png").write_bytes(png(scene(number)[0]))
            (labels / f"{name}_gtFine_polygons.json").write_text("{}")
    return folder


def scene_rows(count=3):
    """Rows of a dataset of images and label maps."""
    made = [scene(number) for number in range(count)]
    return [{"image": {"bytes": png(i), "path": None}, "map": {"bytes": png(m), "path": None}} for i, m in made]


def save_scenes(path, rows, *columns):
    import datasets

    features = datasets.Features({column: datasets.Image() for column in columns})
    renamed = [dict(zip(columns, row.values(), strict=True)) for row in rows]
    datasets.Dataset.from_list(renamed, features=features).save_to_disk(str(path))


def load_scenes(folder, *, role="evaluation", task=None, ids=IDS, **more):
    folder = None if folder is None else Path(folder)
    return load_scene_samples(DataSpec(None, folder, known=task, role=role, **more), lambda _task: ids)


def save_segmenter(folder, family="segformer", *, side=SIDE, processor=None, **overrides):
    """A tiny random model of three named classes with its image processor, as a folder."""
    names = dict(enumerate(NAMES))
    model = build(family, id2label=names, label2id={name: number for number, name in names.items()}, **overrides)
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    kind = getattr(transformers, PROCESSORS[family])
    kind(**{"size": size, "ignore_index": IGNORED} | (processor or {})).save_pretrained(folder)
    return folder


def with_palette(path):
    """Turn a label map into a PNG with a palette whose colours say nothing of the ids."""
    image = Image.fromarray(np.asarray(Image.open(path)), "L")
    indexed = Image.frombytes("P", image.size, image.tobytes())
    indexed.putpalette([(7 * value + 91) % 256 for value in range(768)])
    indexed.save(path)
