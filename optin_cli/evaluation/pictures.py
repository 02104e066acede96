"""Write pictures of segmented images: what a person can judge two models by."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from optin_cli.artifacts.evaluation import DrawnScene
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.image_input import SceneInput
from optin_cli.data.images.decode import decode_image
from optin_cli.data.images.label_maps import IGNORED, Classes
from optin_cli.data.images.scene_samples import SceneSamples
from optin_cli.data.load import AnySamples, require_scenes
from optin_cli.errors import UsageError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.class_maps import agreement
from optin_cli.evaluation.panels import Legend, Pixels, draw_picture, mark, paint, spread_palette
from optin_cli.evaluation.predict import Prediction
from optin_cli.files import atomic_files
from optin_cli.tasks.schema import Colour, Task

UNCOUNTED: Colour = (255, 255, 255)
LOST, GAINED, OTHER, BARE = (213, 94, 0), (0, 158, 115), (240, 228, 66), (86, 180, 233)
"""Of Okabe and Ito's palette, which readers with any colour vision can distinguish."""
LISTED = 14
"""Classes that a legend names."""


@dataclass(frozen=True)
class Shown:
    """A model's name and its map of one image, (height, width); counts: (3, C) of `count_pixels`, where labelled."""

    name: str
    classes: NDArray[np.integer]
    counts: torch.Tensor | None


@dataclass(frozen=True)
class Scene:
    """One image with its labels, None where it has none, and what models make of it, the last being the first's rival.

    palette: a colour for each class, (C, 3). names: of the classes.
    """

    title: str
    image: Pixels
    labels: Classes | None
    shown: Sequence[Shown]
    palette: NDArray[np.uint8]
    names: Sequence[str]


def require_drawable(checkpoint: Checkpoint, samples: AnySamples | None) -> None:
    """Refuse pictures of what is not segmented (UsageError)."""
    if not isinstance(checkpoint.input, SceneInput):
        raise UsageError(
            f"--pictures draws segmented images, but {checkpoint.name} is a {checkpoint.blueprint.model_class} for "
            f"{checkpoint.blueprint.purpose}.",
            hint="Leave it out.",
        )
    if samples is None:
        raise UsageError("--pictures needs images.", hint="Pass --task NAME with --data PATH, or --data and --against.")


def write_pictures(
    models: Sequence[tuple[Checkpoint, Prediction]], samples: AnySamples, task: Task | None, folder: Path, count: int
) -> tuple[DrawnScene, ...]:
    """Draw the first `count` images and write them into a folder, whose other files stay.

    models: the one that is judged and, where there is one, that which it is compared with.
    """
    scenes, takes = require_scenes(samples), models[0][0].input
    assert isinstance(takes, SceneInput)
    palette = palette_of(scenes, task, len(takes.class_names))
    records = []
    rows = range(min(count, len(scenes)))
    names = [_file(number, scenes) for number in rows]
    with atomic_files(folder, last=names[-1]) as temporary:
        for row, name in zip(rows, names, strict=True):
            scene = _scene(models, scenes, row, palette, takes.class_names)
            draw(scene).save(temporary / name, "PNG")
            first, *others = [prediction.maps[row] for _, prediction in models]
            records.append(
                DrawnScene(
                    file=name,
                    sha256=hashlib.sha256((temporary / name).read_bytes()).hexdigest(),
                    image=scenes.images[row].name,
                    agreement=agreement([first], others) if others else None,
                    pixel_accuracy=_accuracy(scene.shown[-1].counts),
                )
            )
    return tuple(records)


def palette_of(samples: SceneSamples, task: Task | None, classes: int) -> NDArray[np.uint8]:
    """A colour for each of the model's classes, (classes, 3): the task's where it has them."""
    rule = None if task is None else task.maps
    if rule is None or rule.palette is None or len(rule.palette) != classes:
        return spread_palette(classes)
    order = (samples.ids.order if samples.ids is not None else None) or range(classes)
    palette = np.zeros((classes, 3), np.uint8)
    palette[list(order)] = np.array(rule.palette, np.uint8)
    return palette


def _file(number: int, samples: SceneSamples) -> str:
    stem = re.sub(r"[^\w.-]+", "-", Path(samples.images[number].name).stem)
    return f"{number + 1:03d}-{stem}.png"


def _scene(
    models: Sequence[tuple[Checkpoint, Prediction]],
    samples: SceneSamples,
    row: int,
    palette: NDArray[np.uint8],
    names: Sequence[str],
) -> Scene:
    picture, labels = samples.images[row], samples.classes(row)
    if labels is not None and not (labels != IGNORED).any():
        labels = None
    shown = []
    for checkpoint, prediction in reversed(models):
        classes = prediction.maps[row].classes().astype(np.int32)
        counts = None
        if labels is not None:
            counts = metrics.count_pixels(torch.from_numpy(classes), torch.from_numpy(labels), len(names), IGNORED)
        shown.append(Shown(checkpoint.name, classes, counts))
    image = np.asarray(decode_image(picture.read(), picture.name))
    return Scene(picture.name, image, labels, shown, palette, names)


def draw(scene: Scene) -> Image.Image:
    """The picture of one image: panels of image, labels, predictions and where they differ, and the legends."""
    panels = [("image", scene.image)]
    if scene.labels is not None:
        panels.append(("labels", paint(scene.labels, scene.palette, UNCOUNTED)))
    marks, legend = differences(scene)
    caption = "where the two differ" if len(scene.shown) > 1 else "where it differs from the labels"
    if marks:
        panels.append((caption, mark(scene.image, marks)))
    panels += [(one.name, paint(one.classes, scene.palette, UNCOUNTED)) for one in scene.shown]
    return draw_picture(scene.title, _facts(scene), panels, [_class_legend(scene), *([legend] if marks else [])])


def differences(scene: Scene) -> tuple[dict[Colour, NDArray[np.bool_]], Legend]:
    """Pixels that differ, by colour, and what the colours mean: between two models, else from the labels."""
    last, labels = scene.shown[-1], scene.labels
    groups: dict[str, tuple[Colour, NDArray[np.bool_]]] = {}
    if len(scene.shown) > 1:
        first = scene.shown[0]
        differ = first.classes != last.classes
        if labels is None:
            groups["another class"] = (BARE, differ)
        else:
            before, after, counted = first.classes == labels, last.classes == labels, labels != IGNORED
            groups[f"only {first.name} is right"] = (LOST, differ & before)
            groups[f"only {last.name} is right"] = (GAINED, differ & after)
            groups["both are wrong, each in its own way"] = (OTHER, differ & counted & ~before & ~after)
            groups["differ, no label"] = (BARE, differ & ~counted)
    elif labels is not None:
        groups["wrong"] = (LOST, (last.classes != labels) & (labels != IGNORED))
    rows = tuple((colour, (text, f"{mask.mean():.1%}")) for text, (colour, mask) in groups.items())
    return dict(groups.values()), Legend(("where they differ", "of image"), rows)


def _facts(scene: Scene) -> list[str]:
    lines = []
    if len(scene.shown) > 1:
        first, last = scene.shown[0], scene.shown[-1]
        share = float((first.classes == last.classes).mean())
        lines.append(f"{last.name} agrees with {first.name} on {share:.2%} of the pixels")
    for one in scene.shown:
        if one.counts is not None:
            values = metrics.score_maps(("mean_iou", "pixel_accuracy"), one.counts[None]).values
            lines.append(
                f"{one.name}: mean IoU {values['mean_iou']:.4f}, pixel accuracy {values['pixel_accuracy']:.4f}"
            )
    return lines


def _class_legend(scene: Scene) -> Legend:
    """Classes that appear anywhere, the most frequent first: share of the image, and IoU of every model."""
    reference = scene.shown[0].classes if scene.labels is None else scene.labels
    share = np.bincount(reference[reference >= 0].ravel(), minlength=len(scene.names)) / reference.size
    seen = {int(c) for one in scene.shown for c in np.unique(one.classes)} | {*np.flatnonzero(share).tolist()}
    order = sorted(seen, key=lambda number: (-share[number], number))
    scored = [one for one in scene.shown if one.counts is not None]
    ious = [metrics.score_maps(("mean_iou",), one.counts[None]).class_iou for one in scored if one.counts is not None]
    rows = []
    for number in order[:LISTED]:
        found = ("" if each[number] is None else f"{each[number]:.3f}" for each in ious)
        colour = tuple(int(part) for part in scene.palette[number])
        rows.append(((colour[0], colour[1], colour[2]), (scene.names[number], f"{share[number]:.1%}", *found)))
    if scene.labels is not None and (scene.labels == IGNORED).any():
        rows.append((UNCOUNTED, ("ignored", f"{(scene.labels == IGNORED).mean():.1%}", *("" for _ in ious))))
    more = f" (the {LISTED} largest of {len(order)})" if len(order) > LISTED else ""
    heads = ("IoU",) if len(ious) < 2 else ("IoU before", "after")
    return Legend((f"class{more}", "of image", *(heads if ious else ())), tuple(rows))


def _accuracy(counts: torch.Tensor | None) -> float | None:
    return None if counts is None else metrics.score_maps(("pixel_accuracy",), counts[None]).values["pixel_accuracy"]
