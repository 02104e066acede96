"""A path or hub id in; a loaded model with its structure, preprocessing and hash out.

Reads folders of transformers and timm, folders that `optin prune` wrote (without running the code in them), and
single state-dict files with a config folder or the name of their architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.architectures.registry import find_architecture, known_heads, parse_architecture
from optin_cli.architectures.schema import Architecture, Purpose
from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.checkpoints.folders import FILE_SUFFIXES, weight_files
from optin_cli.checkpoints.libraries.hub import download
from optin_cli.checkpoints.libraries.registry import (
    CONFIG,
    Blueprint,
    ImageInput,
    Library,
    Modality,
    Preprocess,
    library_named,
    library_of,
    read_folder,
    split_prefix,
)
from optin_cli.checkpoints.weights import read_state, storage_dtype
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.files import sha256_of
from optin_cli.model.resolve import find_structure
from optin_cli.model.structure import Structure

VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a model that a runtime holds, since it cannot be looked into.

    runtime: name and version. totals: its cost for an input of the shape `workload`.
    """

    runtime: str
    workload: Workload
    totals: Totals


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory with all that is known of its origin.

    `root` is the path of the base model inside `model`; `weight_bytes` and `dtype` are those of the stored weights,
    whatever type the model computes in. recorded: for an exported model, whose `model` only passes tensors on.
    description: the file of an architecture description that was used instead of the shipped one, None for the latter.
    """

    name: str
    sha256: str
    blueprint: Blueprint
    model: nn.Module
    structure: Structure
    root: str
    dtype: torch.dtype
    weight_bytes: int
    recorded: Recorded | None = None
    description: Source | None = None

    @property
    def source(self) -> Source:
        """Name and hash, as artifacts record them."""
        return Source(name=self.name, sha256=self.sha256)

    @property
    def sources(self) -> dict[str, Source]:
        """The inputs that every artifact made from it records, by role.

        A shipped description is not among them, since the version of optin says which one it is.
        """
        own = {} if self.description is None else {"architecture": self.description}
        return {"checkpoint": self.source, **own}

    @property
    def device(self) -> torch.device:
        """Where the model lies. One that a runtime holds has no parameters here, and computes on the CPU."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def library(self) -> str:
        """Name of the library that builds the model: transformers or timm."""
        return self.blueprint.library

    @property
    def builder(self) -> Library:
        """That library."""
        return library_named(self.blueprint.library)

    @property
    def folder(self) -> Path | None:
        """Where config, tokenizer and processor lie; None where a weights file stands alone."""
        return self.blueprint.folder

    @property
    def config(self) -> Any:
        """The library's own config."""
        return self.blueprint.config

    @property
    def auto_class(self) -> str:
        """What loads such a model: an auto class of transformers, or timm.create_model."""
        return self.blueprint.auto_class

    @property
    def model_class(self) -> str:
        """Name of the model's class."""
        return self.blueprint.model_class

    @property
    def modality(self) -> Modality:
        """What the model takes: text or images."""
        return self.blueprint.modality

    @property
    def image(self) -> ImageInput | None:
        """The images that the model takes; None for text."""
        return self.blueprint.image

    @property
    def num_labels(self) -> int:
        """Classes that the head tells apart."""
        return self.blueprint.num_labels

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Their names in order, where they are known."""
        return self.blueprint.label_names

    @property
    def plan(self) -> dict[str, Any] | None:
        """How the model was cut already."""
        return self.blueprint.plan

    @property
    def problem_type(self) -> str | None:
        """What the head was trained for, by transformers' names."""
        return self.blueprint.problem_type

    @property
    def purpose(self) -> Purpose:
        """The kind of task that the model is for, by its head and problem type."""
        return known_heads()[self.auto_class].purpose_for(self.problem_type)

    def preprocess(self) -> Preprocess:
        """What turns an image into what the model was trained to see, (channels, height, width).

        Raises:
            CheckpointError: the checkpoint does not say.
        """
        return self.builder.preprocess(self.blueprint)

    def tokenizer(self) -> Any:
        """Load the tokenizer.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        from transformers import AutoTokenizer

        if self.modality != "text" or self.folder is None:
            raise CheckpointError(
                f"{self.name} is an image model ({self.model_class}), so it has no tokenizer.",
                hint="Pass a folder of images instead of texts.",
            )
        hint = f"Put tokenizer.json and tokenizer_config.json into {self.folder}."
        # Without a vocabulary transformers makes up an empty one, in which every word is unknown.
        if not any(path for pattern in VOCABULARIES for path in self.folder.glob(pattern)):
            raise CheckpointError(f"{self.name} has no usable tokenizer: no vocabulary file.", hint=hint)
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{self.name} has no usable tokenizer: {first}", hint=hint) from error


def pick_device(name: str | None) -> torch.device:
    """The named device, or the accelerator if there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def as_checkpoint(checkpoint: Checkpoint | str | Path, device: str | None = None) -> Checkpoint:
    """The checkpoint itself, or what loads from a path or hub id."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint, device=device)


def load_checkpoint(
    source: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    architecture: Path | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        source: a folder, a state-dict file, or a model-hub id; timm:NAME for pretrained weights of timm.
        arch: for a state-dict file, the folder (or hub id) that holds its config.json ("hf:" in front is allowed),
            or timm:NAME.
        arch_args: arguments that the named model of timm was made with, such as img_size and num_classes.
        architecture: a description to use instead of the shipped one.
        device: where to put the model.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, unsafe or unsound.
        ArchitectureError: no description fits it.
    """
    target = pick_device(device)
    path = Path(source)
    arguments = arch_args or {}
    own = None if architecture is None else read_description(architecture)
    if path.is_file():
        blueprint, files = _describe(path, arch, arguments, architecture), [path]
    elif arch is not None or arguments:
        raise UsageError(f"--arch names the config of a single weights file, but {source} is not a file.")
    else:
        folder = path if path.is_dir() else _fetch(str(source))
        blueprint, files = read_folder(folder, architecture), []
    description = find_architecture(blueprint.kind, blueprint.library) if own is None else own[0]
    if blueprint.folder is not None and not files:
        files = weight_files(blueprint.folder)
    state = read_state(files)
    model, root = library_named(blueprint.library).build(blueprint, state, str(source))
    if blueprint.image is not None:
        _require_size(model, blueprint.image, str(source))
    head = known_heads()[blueprint.auto_class]
    model = model.to(target)
    structure = find_structure(model, description, head, root=root, problem_type=blueprint.problem_type)
    if (image := blueprint.image) is not None:
        structure = structure.measured(model, {image.input_name: torch.zeros(1, *image.shape, device=target)})
    return Checkpoint(
        name=path.stem if path.is_file() else path.resolve().name if path.is_dir() else str(source),
        sha256=sha256_of(blueprint.identity, *files),
        blueprint=blueprint,
        model=model,
        structure=structure,
        root=root,
        dtype=storage_dtype(state),
        weight_bytes=sum(f.stat().st_size for f in files),
        description=None if own is None else own[1],
    )


def read_description(path: Path) -> tuple[Architecture, Source]:
    """Read an architecture description, with its file's name and hash as artifacts record them.

    Raises:
        ArchitectureError: the file cannot be read, or is no valid description.
    """
    return parse_architecture(path), Source(name=path.name, sha256=sha256_of(path))


@torch.no_grad()
def _require_size(model: nn.Module, image: ImageInput, name: str) -> None:
    """Refuse a model that does not take images of the size that its own preprocessing makes."""
    try:
        model(**{image.input_name: torch.zeros(1, *image.shape)})
    except (RuntimeError, ValueError, AssertionError) as error:
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{name} says that its images have {image.height} x {image.width} pixels and {image.channels} channels, "
            f"but its model refuses them: {lines[0].rstrip('.') if lines else type(error).__name__}.",
            hint="Correct the size in the checkpoint's preprocessing: input_size in config.json for timm, size and "
            "crop_size in preprocessor_config.json for transformers.",
        ) from error


def _fetch(source: str) -> Path:
    prefix, name = split_prefix(source)
    return download(source if prefix is None else library_of(prefix).repository(name))


def _describe(path: Path, arch: str | None, arguments: Mapping[str, Any], architecture: Path | None) -> Blueprint:
    if path.suffix not in FILE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a {path.suffix or 'suffixless'} file; expected a checkpoint folder, "
            f"or a state dict ({', '.join(FILE_SUFFIXES)})."
        )
    if arch is not None:
        prefix, name = split_prefix(arch)
        return library_of(prefix or "hf").describe(name, arguments, architecture)
    if arguments:
        raise UsageError("--arch-args need the model's name.", hint="Pass --arch timm:NAME beside them.")
    if (path.parent / CONFIG).is_file():
        return read_folder(path.parent, architecture)
    raise UsageError(
        f"{path} is a state dict, which does not say what model it belongs to, and no {CONFIG} lies beside it.",
        hint=f"Pass --arch FOLDER, where FOLDER holds the model's {CONFIG} (and tokenizer), or --arch timm:NAME.",
    )


def load(path: str | Path, *, device: str | None = None) -> nn.Module:
    """Load a cut (or uncut) checkpoint as a module in evaluation mode, running no code from its folder."""
    return as_checkpoint(path, device).model
