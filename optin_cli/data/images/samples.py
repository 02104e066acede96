"""Samples of images that decode, with their labels, in an order that depends on content only.

Every chosen image is decoded once before anything else happens, and its pixels are dropped: broken files are found,
and replaced by the next in rank, before a model has run for an hour.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from optin_cli.artifacts.base import Options
from optin_cli.data.images.decode import find_fault
from optin_cli.data.images.folders import Gallery, Picture, listed, read_gallery
from optin_cli.data.sampling import content_hash, digest_of, rank_rows
from optin_cli.data.spec import DataSpec
from optin_cli.errors import DataError
from optin_cli.options.images import ImageOptions
from optin_cli.progress import SILENT, Progress

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageSamples:
    """Images, unread, and their labels, in an order that depends on content and seed only.

    name: task or folder name, for display. split: the split read, "all" where there is none. labels: class numbers of
    the data, or None where it has none; label_names: names of classes 0, 1, …. sha256: over the files' contents and
    labels, independent of order. total: images before limiting. skipped: those passed over since they do not decode,
    each "name (reason)". digests: sha256 of each file. options: how they are read, now and later.
    """

    name: str
    split: str
    images: list[Picture]
    labels: list[int] | None
    label_names: tuple[str, ...] | None
    sha256: str
    total: int
    skipped: tuple[str, ...]
    digests: list[str]
    options: ImageOptions

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether there is anything to measure predictions by."""
        return self.labels is not None

    @property
    def skipped_note(self) -> str | None:
        """The note about skipped images; None where there were none."""
        if not self.skipped:
            return None
        return f"Skipped {_count(self.skipped, len(self))} of {self.name}: {listed(self.skipped)}."

    @property
    def constants(self) -> Options:
        """What an evaluation records of how the samples were read: the number of skipped images."""
        return {"skipped_images": len(self.skipped)}

    def head(self, count: int) -> ImageSamples:
        """The first `count` of them; name and hash stay those of the whole."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], digests=self.digests[:count], labels=labels)


def load_image_samples(spec: DataSpec, progress: Progress = SILENT) -> ImageSamples:
    """Find, select and check images.

    Raises UsageError: no data is named, or two names contradict each other. DataError: the data is missing, empty, no
    images, labelled in part, or more images fail to decode than `spec.images` allows.
    """
    task, path = spec.resolve("image")
    return select_images(read_gallery(path, task, spec.role, spec.label_column), spec, progress)


def select_images(gallery: Gallery, spec: DataSpec, progress: Progress = SILENT) -> ImageSamples:
    """Select and check images that were found already (DataError as of `load_image_samples`)."""
    options = spec.images
    with ThreadPoolExecutor(reading_threads(options)) as pool, warnings.catch_warnings():
        # Of what Pillow warns about in a file that it decodes all the same, a user can change nothing.
        warnings.filterwarnings("ignore", module="PIL")
        digests = list(reported(pool.map(_digest, gallery.pictures), len(gallery.pictures), "reading", progress))
        ranked = rank_rows(digests, gallery.labels, spec.seed)
        chosen, skipped = _choose(pool, gallery, ranked, spec, progress)
    labels = None if gallery.labels is None else [gallery.labels[i] for i in chosen]
    hashes = [digests[i] for i in chosen]
    return ImageSamples(
        name=gallery.name,
        split=gallery.split,
        images=[gallery.pictures[i] for i in chosen],
        labels=labels,
        label_names=gallery.label_names,
        sha256=content_hash(hashes, labels),
        total=len(gallery.pictures),
        skipped=skipped,
        digests=hashes,
        options=options,
    )


def reading_threads(options: ImageOptions) -> int:
    """Threads that read and decode: as many as asked, or as the process has processors."""
    if options.workers is not None:
        return options.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose(
    pool: ThreadPoolExecutor, gallery: Gallery, ranked: Sequence[int], spec: DataSpec, progress: Progress
) -> tuple[list[int], tuple[str, ...]]:
    """The first `spec.limit` images by rank that decode, and those skipped on the way (DataError if too many were)."""
    options = spec.images
    wanted = len(ranked) if spec.limit is None else min(spec.limit, len(ranked))
    chosen: list[int] = []
    faults: dict[str, str] = {}
    waiting = list(ranked)
    while waiting and len(chosen) < wanted:
        next_ones = waiting[: wanted - len(chosen)]
        del waiting[: len(next_ones)]
        found = pool.map(lambda index: _fault(gallery.pictures[index], options), next_ones)
        for index, fault in zip(next_ones, reported(found, len(next_ones), "decoding", progress), strict=True):
            if fault is None:
                chosen.append(index)
            else:
                faults[gallery.pictures[index].name] = fault
    skipped = tuple(f"{name} ({fault})" for name, fault in sorted(faults.items()))
    if not chosen or len(skipped) > options.max_unreadable * (len(chosen) + len(skipped)):
        raise DataError(
            f"{_count(skipped, len(chosen))} of {gallery.name}, more than the {options.max_unreadable:.1%} that may "
            f"be skipped: {listed(skipped)}.",
            hint="Repair or remove them, or allow a larger share with --max-unreadable.",
        )
    return chosen, skipped


def _digest(picture: Picture) -> str:
    """sha256 of the file; of its name where it cannot be read, so that it has a rank all the same."""
    try:
        return hashlib.sha256(picture.read()).hexdigest()
    except (OSError, DataError):
        return digest_of(["unreadable", picture.name])


def _fault(picture: Picture, options: ImageOptions) -> str | None:
    try:
        content = picture.read()
    except OSError as error:
        return error.strerror or type(error).__name__
    except DataError as error:
        return error.message
    return find_fault(content, max_ratio=options.max_ratio)


def reported(items: Iterable[Item], total: int, what: str, progress: Progress) -> Iterator[Item]:
    """Yield the items, reporting each."""
    for number, item in enumerate(items):
        progress.update(number, total, what)
        yield item


def _count(skipped: Sequence[str], good: int) -> str:
    return f"{len(skipped):,} of {len(skipped) + good:,} images"
