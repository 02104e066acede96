"""A checkpoint and a data source in; samples of what its model takes, and batches of them, out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.samples import ImageSamples, load_image_samples
from optin_cli.data.labels import image_class_ids, label_ids
from optin_cli.data.load import AnySamples
from optin_cli.data.text.pairs import pair_batches
from optin_cli.data.text.samples import Samples, load_samples
from optin_cli.data.text.tokenize import DEFAULT_LENGTH, make_batches, usable_length
from optin_cli.errors import CheckpointError, DataError, UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.registry import require_modality
from optin_cli.tasks.schema import Role, Task

OTHER_TASK = "Evaluate on a task the model was trained for, or leave out --task and compare with --against."


def require_fit(checkpoint: Checkpoint, task: Task, *, hint: str = OTHER_TASK) -> None:
    """Refuse a task that is not what the model is for. Needs no samples, so it can run before any are read.

    Raises:
        DataError: the task is on the other modality, or of another kind than the model's head, or the head has not
            one output for regression, or only one for classification.
    """
    require_modality(task, checkpoint.modality)
    counted = ""
    if checkpoint.purpose == task.kind and task.kind in ("classification", "regression"):
        one = checkpoint.num_labels == 1
        counted = "" if one == (task.kind == "regression") else f" with {checkpoint.num_labels} output{'s' * (not one)}"
    if checkpoint.purpose != task.kind or counted:
        raise DataError(
            f"The task {task.name} is a {task.kind} task, but {checkpoint.name} is a {checkpoint.model_class} "
            f"for {checkpoint.purpose}{counted}.",
            hint=hint,
        )


def require_loss(checkpoint: Checkpoint, task: Task | None, *, data: str, needed_by: str, hint: str) -> None:
    """Refuse calibration by labels that the model has no loss for. Needs no samples, like `require_fit`.

    Args:
        task: the task whose labels they are, None for the labels of a file or folder.
        data: what the calibration data is called. needed_by: what needs the labels; both for the message.

    Raises:
        DataError: the task does not fit, or the model does not predict one label per sample.
        UsageError: labels of classes for a model of sentence embeddings.
    """
    if task is not None:
        require_fit(checkpoint, task, hint=hint)
    elif checkpoint.purpose == "similarity" and checkpoint.modality == "text":
        raise _no_classes(checkpoint, data)
    output = checkpoint.structure.outputs[0]
    known = {
        "classification": output.kind == "categorical" and checkpoint.num_labels > 1,
        "regression": checkpoint.num_labels == 1,
        "similarity": checkpoint.modality == "text",
    }
    if not known.get(checkpoint.purpose, False):
        several = " with several labels per sample" if output.kind == "bernoulli" else ""
        raise DataError(
            f"{needed_by} needs the loss of one label per sample, but {checkpoint.name} is a "
            f"{checkpoint.model_class} for {checkpoint.purpose}{several}.",
            hint=hint,
        )


def _no_classes(checkpoint: Checkpoint, data: str) -> UsageError:
    return UsageError(
        f"{checkpoint.name} puts out sentence embeddings; the labels of {data} name no classes of it.",
        hint="Pass a task whose labels say how alike two sentences are: --calib stsb-cosine --data PATH.",
    )


def read_samples(
    checkpoint: Checkpoint,
    source: str | None,
    *,
    task: Task | None = None,
    data: str | Path | None = None,
    split: Role,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    images: ImageOptions | None = None,
    progress: Progress = SILENT,
    labelled: bool = False,
) -> AnySamples:
    """Read and select texts or images, as the model takes.

    A model of sentence embeddings reads texts one at a time, so that calibration data of two texts a row has one
    sample a text, unless it is of a named task that makes one sequence of both.

    Args:
        source, task, data, split, columns, label_column, limit, seed: see `load_samples` and `load_image_samples`.
        images: what may be skipped of images.
        tell: told of progress.
        note: told what a user should know, such as images that were skipped.
        labelled: whether calibration is by labels, so that two texts that one label belongs to stay together.

    Raises:
        UsageError: options that contradict each other.
        DataError: bad data.
    """
    data = None if data is None else Path(data)
    if checkpoint.modality == "text":
        return load_samples(
            source,
            task=task,
            data=data,
            split=split,
            columns=columns,
            label_column=label_column,
            limit=limit,
            seed=seed,
            alone=checkpoint.purpose == "similarity",
            labelled=labelled,
        )
    if columns is not None:
        raise UsageError(
            f"--text-columns name columns of text, but {checkpoint.name} takes images.", hint="Leave them out."
        )
    samples = load_image_samples(
        source,
        task=task,
        data=data,
        split=split,
        label_column=label_column,
        limit=limit,
        seed=seed,
        options=images,
        progress=progress,
    )
    if samples.skipped_note is not None:
        progress.note(samples.skipped_note)
    return samples


def model_length(checkpoint: Checkpoint, tokenizer: Any, asked: int | None, *, default: int = DEFAULT_LENGTH) -> int:
    """Tokens a sample may have: `asked`, or the default, within what the model holds (UsageError beyond)."""
    return usable_length(tokenizer, checkpoint.config, asked, checkpoint.model, default=default)


def encode(
    checkpoint: Checkpoint,
    samples: AnySamples,
    *,
    batch_size: int,
    max_length: int | None = None,
    task: Task | None = None,
    labelled: bool = False,
) -> Sequence[Batch]:
    """Batches of what the model takes, on its device.

    Texts are tokenised at once. Images are decoded whenever the batches are gone through; `list` keeps them.

    Args:
        max_length: most tokens of a text, None for the default.
        task: names classes where the data does not.
        labelled: whether batches carry the model's class ids.

    Raises:
        UsageError: a size out of range, or a maximum length for images.
        DataError: labels that the model has no classes for.
    """
    if isinstance(samples, ImageSamples):
        if max_length is not None:
            raise UsageError(f"--max-length counts tokens, but {checkpoint.name} takes images.", hint="Leave it out.")
        return _encode_images(checkpoint, samples, batch_size, task if labelled else None, labelled)
    tokenizer = checkpoint.tokenizer()
    length = model_length(checkpoint, tokenizer, max_length)
    if labelled and task is not None and task.each_alone:
        pairs = pair_batches(samples, task, tokenizer, batch_size=batch_size, max_length=length)
        return fit_inputs(checkpoint, pairs)
    if labelled and checkpoint.purpose == "similarity":
        raise _no_classes(checkpoint, samples.name)
    batches = make_batches(
        samples,
        tokenizer,
        batch_size=batch_size,
        max_length=length,
        label_map=label_ids(samples, task, checkpoint.config) if labelled else None,
    )
    return fit_inputs(checkpoint, batches)


def _encode_images(
    checkpoint: Checkpoint,
    samples: ImageSamples,
    batch_size: int,
    task: Task | None,
    labelled: bool,
) -> Sequence[Batch]:
    if checkpoint.image is None:
        raise CheckpointError(f"{checkpoint.name} does not say what images its model takes.")
    labels = None
    if labelled:
        labels = image_class_ids(samples, task, checkpoint.label_names, checkpoint.num_labels)
    return image_batches(
        samples,
        checkpoint.preprocess(),
        input_name=checkpoint.image.input_name,
        shape=checkpoint.image.shape,
        batch_size=batch_size,
        labels=labels,
        device=checkpoint.device,
    )


def require_texts(samples: AnySamples) -> Samples:
    """The samples, which must be texts."""
    if isinstance(samples, ImageSamples):
        raise DataError(f"{samples.name} holds images; expected texts.", hint="Pass texts, or another task.")
    return samples


def fit_inputs(checkpoint: Checkpoint, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with only the inputs that the model's forward names, on the model's device."""
    taken = inspect.signature(checkpoint.model.forward).parameters
    return [
        replace(batch, inputs={k: v for k, v in batch.inputs.items() if k in taken}).to(checkpoint.device)
        for batch in batches
    ]
