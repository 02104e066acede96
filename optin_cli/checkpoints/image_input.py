"""What a model of images takes: its example and random inputs, its samples, and batches of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from optin_cli.artifacts.base import Workload
from optin_cli.checkpoints.batching import PROBE_ROWS, PROBE_TOKENS, BatchOptions, Inputs, device_of, fit_inputs, seeded
from optin_cli.checkpoints.libraries.registry import Blueprint, ImageSpec, MapDecoder, Preprocess
from optin_cli.data.batch import Batch
from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.label_maps import LabelIds, explain_ids
from optin_cli.data.images.samples import ImageSamples, load_image_samples
from optin_cli.data.images.scene_samples import load_scene_samples
from optin_cli.data.labels import image_class_ids
from optin_cli.data.load import AnySamples, described, require_images
from optin_cli.data.spec import DataSpec
from optin_cli.errors import CheckpointError, UsageError, first_line
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.schema import InputKind, Task

MOST_PIXELS = 32 * 224 * 224
"""Pixels of the images of one batch. Scores of a Mask2Former keep some 12 KB a pixel for their backward passes."""


@dataclass(frozen=True)
class ImageInput:
    """Pixels of one size under one name, (rows, channels, height, width)."""

    name: str
    blueprint: Blueprint
    model: nn.Module
    image: ImageSpec
    kind: ClassVar[InputKind] = "image"
    noun: ClassVar[str] = "pixels"
    axes: ClassVar[Mapping[int, str]] = MappingProxyType({0: "batch"})
    unmergeable: ClassVar[str | None] = None
    pairs: ClassVar[bool] = False
    most: ClassVar[int | None] = None
    reserved: ClassVar[int] = 0
    vocabulary: ClassVar[int] = 0

    def names(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.image.input_name,)

    def rows_at_once(self, asked: int, tokens: int) -> int:
        """As many as asked."""
        del tokens
        return asked

    @torch.no_grad()
    def check(self) -> None:
        """Refuse a model that does not take images of the size that its own preprocessing makes (CheckpointError)."""
        image = self.image
        try:
            self.model(**self.example(self.workload()))
        except (RuntimeError, ValueError, AssertionError) as error:
            if image.resized:
                raise UsageError(
                    f"{self.name} does not take images of {image.height} x {image.width} pixels: "
                    f"{first_line(error).rstrip('.')}.",
                    hint="It may take one size only, or multiples of some number; pass another --image-size.",
                ) from error
            raise CheckpointError(
                f"{self.name} says that its images have {image.height} x {image.width} pixels and {image.channels} "
                f"channels, but its model refuses them: {first_line(error).rstrip('.')}.",
                hint="Correct the size in the checkpoint's preprocessing: input_size in config.json for timm, size and "
                "crop_size in preprocessor_config.json for transformers.",
            ) from error

    def length(self, asked: int | None) -> int | None:
        """None, since images have one size (UsageError where a length is asked)."""
        if asked is None:
            return None
        raise UsageError(
            f"{self.name} takes images of {self.workload().shape}, which have no sequence length.",
            hint="Leave out --seq-len.",
        )

    def workload(self, seq_len: int | None = None, batch_size: int = 1) -> Workload:
        """`batch_size` images of the model's size."""
        del seq_len
        return Workload(batch_size=batch_size, image=self.image.shape, resized=self.image.resized or None)

    def example(self, workload: Workload) -> Inputs:
        """Zeros."""
        return self._named(torch.zeros(self._shape(workload)))

    def random(self, workload: Workload, *, seed: int = 0, vocabulary: int | None = None) -> Inputs:
        """Normal noise."""
        del vocabulary
        return self._named(torch.randn(self._shape(workload), generator=seeded(seed)))

    def _shape(self, workload: Workload) -> tuple[int, ...]:
        return workload.batch_size, *(workload.image or self.image.shape)

    def _named(self, pixels: torch.Tensor) -> Inputs:
        return {self.image.input_name: pixels.to(device_of(self.model))}

    def probe(self, most: int | None, *, rows: int = PROBE_ROWS, tokens: int = PROBE_TOKENS) -> Inputs:
        """Normal noise."""
        del most, tokens
        return {self.image.input_name: torch.randn((rows, *self.image.shape), generator=seeded(0))}

    def tokenizer(self, *, words: bool = False) -> Any:
        """Refuse: images are not tokenised."""
        del words
        raise CheckpointError(
            f"{self.name} is an image model ({self.blueprint.model_class}), so it has no tokenizer.",
            hint="Pass a folder of images instead of texts.",
        )

    def preprocess(self) -> Preprocess:
        """The library's evaluation transform (CheckpointError where the checkpoint does not say it)."""
        return self.blueprint.builder.preprocess(self.blueprint)

    def load_samples(self, spec: DataSpec, progress: Progress = SILENT) -> AnySamples:
        """Images of a folder, dataset or task; a note says which were skipped."""
        if spec.columns is not None:
            raise UsageError(
                f"--text-columns name columns of text, but {self.name} takes images.", hint="Leave them out."
            )
        samples = self._load(spec, progress)
        if samples.skipped_note is not None:
            progress.note(samples.skipped_note)
        progress.read(described(samples))
        return samples

    def _load(self, spec: DataSpec, progress: Progress) -> ImageSamples:
        return load_image_samples(spec, progress)

    def batches(self, samples: AnySamples, options: BatchOptions) -> Sequence[Batch]:
        """Batches on the model's device that decode whenever they are gone through; `list` keeps them.

        Raises UsageError: a size out of range, or a maximum length. DataError: labels that the model has no classes
        for.
        """
        if options.max_length is not None:
            raise UsageError(f"--max-length counts tokens, but {self.name} takes images.", hint="Leave it out.")
        blueprint, labels = self.blueprint, None
        if options.labelled:
            labels = image_class_ids(require_images(samples), options.task, blueprint.label_names, blueprint.num_labels)
        return self._cut(require_images(samples), options.batch_size, self.image.shape, labels)

    def _cut(
        self, samples: ImageSamples, batch_size: int, shape: tuple[int, int, int] | None, labels: Sequence[int] | None
    ) -> Sequence[Batch]:
        name, transform = self.image.input_name, self.preprocess()
        size = min(batch_size, max(1, MOST_PIXELS // (self.image.height * self.image.width)))
        made = image_batches(samples, transform, input_name=name, shape=shape, batch_size=size, labels=labels)
        return made.to(device_of(self.model))

    def read_length(self, asked: int | None) -> int | None:
        """None: images are no texts."""
        del asked
        return None

    def read_limit(self) -> int | None:
        """None: images are no texts."""
        return None

    def fit(self, batches: Iterable[Batch], tokenizer: Any) -> list[Batch]:
        """What the model takes of the batches."""
        del tokenizer
        return fit_inputs(self.model, batches)

    def positive_class(self, samples: AnySamples, task: Task) -> int:
        """The second class."""
        del samples, task
        return 1


@dataclass(frozen=True)
class SceneInput(ImageInput):
    """Pixels under one name, (rows, channels, height, width), for models that put out a class for every pixel."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's names of its classes, or their numbers in words."""
        known = self.blueprint.label_names
        return known or tuple(f"class {number}" for number in range(self.blueprint.num_labels))

    def map_decoder(self) -> MapDecoder:
        """How label maps are read, and made of outputs."""
        return self.blueprint.builder.map_decoder(self.blueprint)

    def _load(self, spec: DataSpec, progress: Progress) -> ImageSamples:
        """Images and, to evaluate, label maps whose ids are explained by the task or the image processor."""
        blueprint = self.blueprint

        def explain(task: Task | None) -> LabelIds:
            usual = self.map_decoder().rule
            return explain_ids(task, usual, blueprint.label_names, blueprint.num_labels, spec.ignored)

        return load_scene_samples(spec, explain, progress)

    def batches(self, samples: AnySamples, options: BatchOptions) -> Sequence[Batch]:
        """Batches of images alone: label maps stay with the samples, since they need not be of the images' size.

        Raises UsageError: a size out of range, or a maximum length. DataError: images of several sizes in a batch.
        """
        if options.max_length is not None:
            raise UsageError(f"--max-length counts tokens, but {self.name} takes images.", hint="Leave it out.")
        shape = self.image.shape if self.image.fixed else None
        return self._cut(require_images(samples), options.batch_size, shape, None)
