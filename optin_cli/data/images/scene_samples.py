"""Samples of images with label maps, every pair checked before anything else happens."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

from optin_cli.artifacts.base import Options
from optin_cli.data.images.decode import decode_numbers, size_of_image
from optin_cli.data.images.folders import Gallery, Picture
from optin_cli.data.images.label_maps import Classes, LabelIds
from optin_cli.data.images.samples import ImageSamples, reading_threads, reported, select_images
from optin_cli.data.images.scenes import read_scenes
from optin_cli.data.sampling import content_hash
from optin_cli.data.spec import DataSpec
from optin_cli.errors import DataError
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.schema import Task


@dataclass(frozen=True)
class SceneSamples(ImageSamples):
    """Images with label maps, in an order that depends on content and seed only.

    maps: the label map of each, unread; None where there are none. ids: what their numbers mean to the model.
    """

    maps: list[Picture] | None = None
    ids: LabelIds | None = None

    @property
    def labelled(self) -> bool:
        """Whether there are label maps."""
        return self.maps is not None

    @property
    def constants(self) -> Options:
        """What an evaluation records: skipped images, and which pixels do not count."""
        if self.ids is None or self.maps is None:
            return super().constants
        return {**super().constants, "ignore_index": [*self.ids.ignored], "reduce_labels": self.ids.reduced}

    def head(self, count: int) -> SceneSamples:
        """The first `count` of them; name and hash stay those of the whole."""
        maps = None if self.maps is None else self.maps[:count]
        return replace(self, images=self.images[:count], digests=self.digests[:count], maps=maps)

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of an image."""
        picture = self.images[row]
        return size_of_image(picture.read(), picture.name)

    def classes(self, row: int) -> Classes | None:
        """The model's class of every pixel of an image, or IGNORED, (height, width); None without label maps."""
        if self.maps is None or self.ids is None:
            return None
        picture = self.maps[row]
        return self.ids.classes_of(decode_numbers(picture.read(), picture.name), picture.name)


def load_scene_samples(
    spec: DataSpec, explain: Callable[[Task | None], LabelIds], progress: Progress = SILENT
) -> SceneSamples:
    """Find, select and check images and, to evaluate, their label maps.

    Args:
        explain: what ids mean to the model, given the task of the data.

    Raises:
        UsageError, DataError: as of `load_image_samples`; or a label map that is missing, holds colours or ids without
            a class, or has another size than its image.
    """
    task, path = spec.resolve("image")
    scenes = read_scenes(path, task, spec.role, spec.label_column)
    gallery = Gallery(scenes.name, scenes.split, scenes.images, None, None)
    chosen = select_images(gallery, spec, progress)
    own = {item.name: getattr(chosen, item.name) for item in fields(ImageSamples)}
    if scenes.maps is None:
        return SceneSamples(**own)
    map_of = {image.name: label for image, label in zip(scenes.images, scenes.maps, strict=True)}
    maps = [map_of[image.name] for image in chosen.images]
    found = SceneSamples(**own, maps=maps, ids=replace(explain(task), raw=scenes.raw))
    with ThreadPoolExecutor(reading_threads(spec.images)) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        checked = pool.map(lambda row: _checked(found, row), range(len(maps)))
        digests = list(reported(checked, len(maps), "reading label maps", progress))
    return replace(found, sha256=content_hash(chosen.digests, digests))


def _checked(samples: SceneSamples, row: int) -> str:
    """sha256 of a label map that fits its image (DataError if it does not)."""
    assert samples.maps is not None
    picture, image = samples.maps[row], samples.images[row]
    try:
        content = picture.read()
    except OSError as error:
        raise DataError(f"The label map {picture.name} cannot be read: {error.strerror}.") from error
    classes = samples.classes(row)
    assert classes is not None
    height, width = samples.size(row)
    if classes.shape != (height, width):
        raise DataError(
            f"The label map {picture.name} has {classes.shape[0]} x {classes.shape[1]} pixels (height x width), but "
            f"its image {image.name} has {height} x {width}; expected the same size.",
            hint="Scale the label map to the size of its image without smoothing (nearest), or remove both.",
        )
    return hashlib.sha256(content).hexdigest()
