"""Batches of images, decoded by threads a little ahead of when they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import overload

import torch
from PIL.Image import Image

from optin_cli.data.batch import Batch, cut_order, unique_keys
from optin_cli.data.images.decode import decode_image
from optin_cli.data.images.samples import ImageSamples, reading_threads
from optin_cli.errors import DataError

Preprocess = Callable[[Image], torch.Tensor]


def image_batches(
    samples: ImageSamples,
    preprocess: Preprocess,
    *,
    input_name: str,
    batch_size: int,
    shape: tuple[int, int, int] | None = None,
    labels: Sequence[int] | None = None,
) -> ImageBatches:
    """Cut images into batches, in an order that depends on content only; on the CPU, see `ImageBatches.to`.

    preprocess: from an RGB image to (C, H, W) float32, the same size for all. input_name: the model's keyword argument,
    of (B, C, H, W). shape: (C, H, W) that the model takes, where only one will do. labels: class ids of the model, one
    per sample.

    Raises UsageError: `batch_size` below 1. Going through the batches raises DataError where an image does not decode
    any more, or comes out in another size than the others.
    """
    # Labels break ties between equal images, whose order would otherwise be that of the files.
    order = sorted(range(len(samples)), key=lambda i: (samples.digests[i], labels[i] if labels else 0))
    keys = unique_keys(order, [digest[:32] for digest in samples.digests])
    return ImageBatches(samples, preprocess, input_name, tuple(cut_order(order, batch_size)), keys, labels, shape)


@dataclass(frozen=True)
class ImageBatches(Sequence[Batch]):
    """Batches that exist while they are used. Going through them decodes ahead; picking one decodes that one.

    plans: the samples that make each batch. keys, labels: by number of the sample.
    """

    samples: ImageSamples
    preprocess: Preprocess
    input_name: str
    plans: tuple[Sequence[int], ...]
    keys: Mapping[int, str]
    labels: Sequence[int] | None
    shape: tuple[int, int, int] | None
    device: torch.device | str = "cpu"

    def to(self, device: torch.device | str) -> ImageBatches:
        """The same batches, each on `device` as soon as it exists."""
        return replace(self, device=device)

    def __len__(self) -> int:
        return len(self.plans)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return replace(self, plans=self.plans[index])
        plan = self.plans[index]
        return self._batch(plan, map(self._image, plan))

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(reading_threads(self.samples.options), thread_name_prefix="decode")
        waiting: deque[tuple[Sequence[int], Iterator[torch.Tensor]]] = deque()
        try:
            for plan in self.plans:
                waiting.append((plan, pool.map(self._image, plan)))
                if len(waiting) > self.samples.options.prefetch:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def filled_from(self, decoded: Sequence[Batch]) -> list[Batch]:
        """The batches, with images of `decoded`: batches of equal preprocessing that number their samples alike."""
        images = {
            row: image
            for batch in decoded
            for row, image in zip(batch.rows, batch.inputs[self.input_name], strict=True)
        }
        return [self._batch(plan, map(images.__getitem__, plan)) for plan in self.plans]

    def _image(self, row: int) -> torch.Tensor:
        picture = self.samples.images[row]
        try:
            content = picture.read()
        except OSError as error:
            raise DataError(
                f"The image {picture.name} of {self.samples.name} cannot be read any more: {error.strerror}."
            ) from error
        return self.preprocess(decode_image(content, picture.name))

    def _batch(self, plan: Sequence[int], decoded: Iterable[torch.Tensor]) -> Batch:
        images = [*decoded]
        shapes = {tuple(image.shape): row for row, image in zip(plan, images, strict=True)}
        if len(shapes) > 1:
            first, second = list(shapes)[:2]
            raise DataError(
                f"The checkpoint's preprocessing leaves images of {self.samples.name} in different sizes: "
                f"{self.samples.images[shapes[first]].name} as {first}, {self.samples.images[shapes[second]].name} "
                f"as {second}; a batch needs one.",
                hint="Pass --image-size HEIGHTxWIDTH or --batch-size 1, or give the checkpoint's preprocessing a crop.",
            )
        (found,) = shapes
        if self.shape is not None and found != self.shape:
            raise DataError(
                f"The checkpoint's preprocessing leaves images as {found} (channels, height, width), but its model "
                f"takes {self.shape}.",
                hint="Correct the size in the checkpoint's preprocessing, or the model's.",
            )
        inputs = {self.input_name: torch.stack(images)}
        labels = None if self.labels is None else torch.tensor([self.labels[row] for row in plan])
        return Batch(inputs, labels, tuple(self.keys[row] for row in plan), tuple(plan)).to(self.device)
