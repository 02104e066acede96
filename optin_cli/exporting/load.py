"""Open an exported file as a checkpoint that evaluation runs in the file's own runtime."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.export import Export
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.checkpoint import Checkpoint, Recorded, load, read_description
from optin_cli.checkpoints.embeddings import embedding_of
from optin_cli.checkpoints.libraries.registry import Blueprint, Reading, read_folder
from optin_cli.errors import ArtifactError, CheckpointError, UsageError, headline
from optin_cli.exporting.registry import ExportError, Run, Target, distribution_of, record_of, target_of
from optin_cli.exporting.trace import Named, silenced
from optin_cli.files import read_bytes, sha256_of
from optin_cli.model.resolve import resolve_outputs
from optin_cli.model.structure import Structure

DEVICE = "cpu"
"""Where exported files are run."""


class ExportedModel(Named):
    """Passes tensors on to a runtime. Segments are those of one text where none are given."""

    def __init__(self, run: Run, record: Export) -> None:
        def compute(inputs: Inputs) -> Mapping[str, torch.Tensor]:
            missing = {name: torch.zeros_like(inputs["input_ids"]) for name in record.takes if name not in inputs}
            arrays = {name: tensor.numpy() for name, tensor in {**inputs, **missing}.items()}
            try:
                found = run(arrays)
            except Exception as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
                raise ExportError(
                    f"{next(iter(record.files))} cannot be run on {shapes}: {headline(error)}",
                    hint="Its record promises that it can; run optin export again.",
                ) from error
            return {name: torch.from_numpy(array) for name, array in found.items()}

        super().__init__(tuple(record.takes), compute)
        self.reserved_positions = record.reserved_positions


def load_evaluated(source: str | Path, *, device: str | None = None, **options: Any) -> Checkpoint:
    """What evaluation takes: a checkpoint (options as of `load`), or a file of `optin export`, run on the CPU."""
    target = target_of(source)
    if target is None or Path(source).is_dir():
        return load(source, device=device, **options)
    if options.get("arch") or options.get("arch_args"):
        raise UsageError(f"--arch names the model of a state dict; {source} says everything itself.")
    if device not in (None, DEVICE):
        raise UsageError(
            f"{source} is an exported file, which is run on the {DEVICE}, but the device {device!r} was asked for.",
            hint="Leave out --device.",
        )
    reading = Reading(options.get("architecture"), options.get("as_class"))
    return load_exported(Path(source), target, reading, options.get("image_size"))


def is_exported(source: Checkpoint | str | Path | None) -> bool:
    """Whether a source is, or names, an exported file rather than a checkpoint."""
    if isinstance(source, Checkpoint):
        return source.recorded is not None
    return source is not None and target_of(source) is not None and not Path(source).is_dir()


def as_evaluated(source: Checkpoint | str | Path, device: str | None = None) -> Checkpoint:
    """The checkpoint itself, or what loads from a path, hub id or exported file."""
    return source if isinstance(source, Checkpoint) else load_evaluated(source, device=device)


def device_for(device: str | None, *sources: Checkpoint | str | Path | None) -> str | None:
    """The device asked for; by default the CPU where an exported file is among the sources."""
    return DEVICE if device is None and any(map(is_exported, sources)) else device


def load_exported(
    path: Path, target: Target, reading: Reading | None = None, image_size: tuple[int, int] | None = None
) -> Checkpoint:
    """Open an exported file in its runtime, with as many threads as torch has.

    Raises UsageError: it takes images of another size than `image_size`, or was exported as another class than
    `reading` asks for. CheckpointError: there is no such file.
    ArtifactError: its record is missing, or of another file. ArchitectureError: the description is not valid.
    ExportError: the runtime is not installed, or refuses the file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", hint="Expected a file that optin export wrote.")
    record, reading = _read_record(path, target), reading or Reading()
    if reading.as_class not in (None, record.auto_class):
        raise UsageError(
            f"--as is {reading.as_class}, but {path.name} was exported as {record.auto_class}.",
            hint=f"Pass --as {record.auto_class}, or export again.",
        )
    description = None if reading.architecture is None else read_description(reading.architecture)[1]
    target.require(target.runs_with)
    # The config beside it is the checkpoint's own, which may name another class.
    blueprint = read_folder(path.parent, replace(reading, as_class=record.auto_class))
    config = record.inputs.get("config")
    if config is None or config.sha256 != sha256_of(blueprint.identity):
        raise ArtifactError(
            f"{path.parent / 'config.json'} is not the config that {path.name} was exported with.",
            hint="Put the two back together, or run optin export again.",
        )
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        checked = target.check(path, Path(scratch))
        try:
            with silenced():
                run = target.open(str(checked), threads)
                continues = None if target.continuing is None else target.continuing(str(checked), threads)
        except Exception as error:
            message = f"{target.runtime} does not open {path}: {headline(error)}"
            raise ExportError(message, hint="Run optin export again.") from error
    blueprint = _at_recorded_size(blueprint, record, path, image_size)
    return Checkpoint(
        name=f"{path.resolve().parent.name}/{path.name}",
        sha256=sha256_of(*(path.parent / name for name in record.files)),
        blueprint=blueprint,
        model=ExportedModel(run, record),
        structure=Structure(
            record.family,
            "",
            (),
            resolve_outputs(blueprint.head, blueprint.problem_type),
            (),
            embedding=embedding_of(blueprint),
        ),
        root="",
        dtype=torch.float32,
        weight_bytes=record.totals.bytes,
        recorded=Recorded(
            runtime=f"{target.runtime} {importlib.metadata.version(distribution_of(target.runtime))}",
            workload=record.workload,
            totals=record.totals,
            continues=continues,
        ),
        description=description,
    )


def _at_recorded_size(
    blueprint: Blueprint, record: Export, path: Path, image_size: tuple[int, int] | None
) -> Blueprint:
    """The blueprint with images of the size that a file was traced with."""
    image = record.workload.image
    if image_size is not None and (image is None or image_size != image[1:]):
        raise UsageError(
            f"{path} was exported for {record.workload.shape}, which another --image-size does not change.",
            hint="Leave out --image-size, or export again with it.",
        )
    return blueprint.at_size(image[1:], path.name) if image is not None and record.workload.resized else blueprint


def _read_record(path: Path, target: Target) -> Export:
    """The record of a file, which must be of this file."""
    beside = record_of(path)
    if not beside.is_file():
        raise ArtifactError(
            f"{path} has no record {beside.name} beside it, so it is unknown what it takes and was made from.",
            hint=f"Write it with optin export CKPT --to {target.name}, and keep the two together.",
        )
    record = parse(Export, read_bytes(beside, "export record"), beside.name)
    if record.target != target.name or path.name not in record.files:
        raise ArtifactError(f"{beside.name} is the record of {next(iter(record.files))}, not of {path.name}.")
    for name, sha256 in record.files.items():
        file = path.parent / name
        if not file.is_file():
            raise ArtifactError(f"{path} needs {name} beside it, which is missing.", hint="Run optin export again.")
        if sha256_of(file) != sha256:
            raise ArtifactError(
                f"{file} is not the file that {beside.name} was written for: its sha256 differs.",
                hint="It was changed or cut short, or is another export; run optin export again.",
            )
    return record
