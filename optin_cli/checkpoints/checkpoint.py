"""Load a checkpoint: a model with its structure, config, preprocessing and hash.

Reads folders of transformers and timm, folders that `optin prune` wrote (without running the code in them), and
single state-dict files with a config folder or the name of their architecture.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.architectures.registry import find_architecture, parse_architecture
from optin_cli.architectures.schema import Architecture
from optin_cli.artifacts.base import Options, Source, Totals, Workload, relative_path
from optin_cli.checkpoints.batching import compute_type, device_of
from optin_cli.checkpoints.continuing import Continue
from optin_cli.checkpoints.embeddings import embedding_of
from optin_cli.checkpoints.folders import FILE_SUFFIXES, download, file_stem, require_recorded, weight_files
from optin_cli.checkpoints.foreign import explaining
from optin_cli.checkpoints.inputs import ModelInput, model_input
from optin_cli.checkpoints.libraries.registry import (
    CONFIG,
    LIBRARIES,
    Blueprint,
    Built,
    Reading,
    library_named,
    read_folder,
    split_prefix,
)
from optin_cli.checkpoints.streaming import Streaming, exceed_memory, free_memory
from optin_cli.checkpoints.weights import Stored, Types, read_stored
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.files import sha256_of
from optin_cli.model.forward import call_model
from optin_cli.model.resolve import find_structure
from optin_cli.model.structure import Structure
from optin_cli.processes.processes import ALONE, Processes

TRIED_LENGTH = 8
"""Tokens that a pruned model is tried with when it is opened."""
MAPPED = ".safetensors"
"""Ending of the files whose tensors can be read one at a time."""


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a model that a runtime holds, since it cannot be looked into.

    runtime: name and version. totals: its cost for an input of the shape `workload`. continues: what continues prompts,
    of a runtime that keeps keys and values; None for any other.
    """

    runtime: str
    workload: Workload
    totals: Totals
    continues: Continue | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory with all that is known of its origin.

    `root` is the path of the base model inside `model`; `weight_bytes` and `dtype` are those of the stored weights,
    whatever type the model computes in; types: where they have several, those of all, by name. left_out: names of
    stored weights that have no place in the model, such as those of a head that it was opened without. notes: what a
    user should know of how it was loaded. recorded: for an exported model, whose `model` only passes tensors on.
    description: the file of an architecture description that was used instead of the shipped one, None for the latter.
    streaming: what gives parts of a model on the meta device their weights; None for one in memory.
    processes: those that have it and share the work that is done with it.
    path: as the user wrote it, where it is relative and says more than the name.
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
    types: Types = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    streaming: Streaming | None = None
    processes: Processes = ALONE
    path: str | None = None

    def stored_as(self, name: str) -> torch.dtype:
        """The floating type in which a tensor of the state dict is stored, and so is what is left of it."""
        return self.types.get(name, self.dtype)

    @property
    def source(self) -> Source:
        """Name and hash, as artifacts record them."""
        return Source(name=self.name, sha256=self.sha256, opened_as=self.blueprint.opened_as, path=self.path)

    @property
    def sources(self) -> dict[str, Source]:
        """The inputs that every artifact made from it records, by role.

        A shipped description is not among them, since the version of optin says which one it is.
        """
        own = {} if self.description is None else {"architecture": self.description}
        return {"checkpoint": self.source, **own}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return device_of(self.model)

    @property
    def computing(self) -> Options:
        """What artifacts record of the type that it computes in: nothing for float32."""
        first = next(self.model.parameters(), None)
        return {} if first is None or first.dtype == torch.float32 else {"dtype": str(first.dtype).split(".")[-1]}

    @property
    def input(self) -> ModelInput:
        """What the model takes: its example inputs, samples and batches."""
        recorded = None if self.recorded is None else self.recorded.workload
        return model_input(self.name, self.blueprint, self.model, recorded)


def default_device() -> str:
    """The accelerator if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device(name: str | None) -> torch.device:
    """The named device, or the default."""
    if name is None:
        return torch.device(default_device())
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def as_checkpoint(checkpoint: Checkpoint | str | Path, device: str | None = None) -> Checkpoint:
    """The checkpoint itself, or what loads from a path or hub id."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else load(checkpoint, device=device)


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    architecture: Path | None = None,
    as_class: str | None = None,
    image_size: tuple[int, int] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    stream: bool | None = False,
) -> Checkpoint:
    """Load a checkpoint, running no code from its folder. Its `model` is in evaluation mode.

    Args:
        path: a folder, a state-dict file, or a model-hub id; timm:NAME for pretrained weights of timm.
        arch: for a state-dict file, the folder (or hub id) that holds its config.json ("hf:" in front is allowed),
            or timm:NAME.
        arch_args: arguments that the named model of timm was made with, such as img_size and num_classes.
        architecture: a description to use instead of the shipped one.
        as_class: the auto class of transformers to open it as, in place of the class that its config names: AutoModel
            for the bare encoder of a masked language model.
        image_size: height and width of the images to work on, instead of what the checkpoint's preprocessing makes.
        device: where to put the model.
        dtype: what it computes in: float32, bfloat16 or auto (`batching.compute_type`).
        stream: leave the weights in their files, from which `Checkpoint.streaming` gives them to one block at a time;
            None for those that would take more than half of the free memory, where they can be streamed.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, unsafe or unsound.
        ArtifactError: it is a pruned folder whose weights are not those that its record certifies.
        ArchitectureError: no description fits it.
        UsageError: it does not take images of that size, there is no such auto class, or Python runs with -OO.
    """
    if sys.flags.optimize > 1:
        raise UsageError(
            "Python runs without docstrings, which transformers cannot do without.",
            hint="Unset PYTHONOPTIMIZE, or leave out -OO.",
        )
    target = pick_device(device)
    place, name = Path(path), str(path)
    arguments = arch_args or {}
    own, reading = None if architecture is None else read_description(architecture), Reading(architecture, as_class)
    if place.is_file():
        blueprint, files = _describe(place, arch, arguments, reading), [place]
    elif arch is not None or arguments:
        raise UsageError(f"--arch names the config of a single weights file, but {name} is not a file.")
    else:
        folder = place if place.is_dir() else _fetch(name)
        blueprint, files = read_folder(folder, reading), weight_files(folder)
        require_recorded(folder)
    blueprint = blueprint if image_size is None else blueprint.at_size(image_size, name)
    description = find_architecture(blueprint.kind, blueprint.library) if own is None else own[0]
    stream = _streamed_from(files, name, stream=stream)
    stored = read_stored(files)
    _require_layers(blueprint, len(stored.tensors), name)
    with explaining(f"{name} does not load as {blueprint.model_class}"):
        built = _build(blueprint, stored, name, target, stream=stream)
        takes = model_input(name, blueprint, built.model)
        takes.check()
    compute = compute_type(dtype, built.dtype, target)
    model = built.model.to(compute) if built.stored else built.model.to(target, compute)
    if blueprint.plan is not None and not built.stored:
        _require_running(model, takes, name)
    structure = find_structure(model, description, blueprint.head, root=built.root, problem_type=blueprint.problem_type)
    structure = structure.measured(model, takes.example(takes.workload(takes.length(None))))
    structure = replace(structure, embedding=embedding_of(blueprint))
    name = file_stem(place) if place.is_file() else place.resolve().name if place.is_dir() else name
    return Checkpoint(
        name=name,
        sha256=sha256_of(blueprint.identity, *files),
        blueprint=blueprint,
        model=model,
        structure=structure,
        root=built.root,
        dtype=built.dtype,
        types=built.types,
        left_out=built.left_out,
        notes=built.notes,
        weight_bytes=sum(f.stat().st_size for f in files),
        description=None if own is None else own[1],
        streaming=Streaming.of(model, built.stored, structure, (target, compute)) if built.stored else None,
        path=relative_path(path, name) if place.exists() else None,
    )


def _streamed_from(files: Sequence[Path], name: str, *, stream: bool | None) -> bool | None:
    """What was asked for; False where the choice is ours and files are read as a whole (CheckpointError if asked)."""
    if all(path.suffix == MAPPED for path in files):
        return stream
    if not stream:
        return False
    raise CheckpointError(
        f"{name} cannot be streamed: its weights are in torch's files; expected {MAPPED}.",
        hint="Save the model with save_pretrained, or leave out --stream.",
    )


def _build(blueprint: Blueprint, stored: Stored, name: str, target: torch.device, *, stream: bool | None) -> Built:
    """The model with its weights, or without them where it is to be streamed."""
    if stream is None:
        free = free_memory(target)
        if not exceed_memory(stored.tensors.values(), torch.float32, free):
            return blueprint.builder.build(blueprint, stored, name)
        try:
            built = blueprint.builder.build_streamed(blueprint, stored, name)
        except CheckpointError:  # whoever has enough memory otherwise did not ask for it
            return blueprint.builder.build(blueprint, stored, name)
        note = f"{name} is streamed, since its weights would take more than half of the {free / 2**30:.1f} GiB free."
        return replace(built, notes=(*built.notes, note))
    if stream:
        return blueprint.builder.build_streamed(blueprint, stored, name)
    return blueprint.builder.build(blueprint, stored, name)


@torch.no_grad()
def _require_running(model: nn.Module, takes: ModelInput, name: str) -> None:
    """Refuse a pruned model whose config and weights load, but do not compute together (CheckpointError)."""
    longest = takes.length(None)
    inputs = takes.example(takes.workload(None if longest is None else min(longest, TRIED_LENGTH)))
    with explaining(f"{name} loads, but does not run", hint=f"Its {CONFIG} was changed; prune the original again."):
        call_model(model.eval(), inputs)


def _require_layers(blueprint: Blueprint, tensors: int, name: str) -> None:
    """Refuse a config of more layers than there are tensors, before memory is spent on them (CheckpointError)."""
    layers = getattr(blueprint.config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > tensors:
        raise CheckpointError(f"The config of {name} says {layers} layers, but its weights are {tensors} tensors.")


def read_description(path: Path) -> tuple[Architecture, Source]:
    """Read a description, with its file's name and hash as recorded (ArchitectureError if it is no valid one)."""
    return parse_architecture(path), Source(name=path.name, sha256=sha256_of(path))


def _fetch(source: str) -> Path:
    prefix, name = split_prefix(source)
    return download(source if prefix is None else library_named(LIBRARIES[prefix]).repository(name))


def _describe(path: Path, arch: str | None, arguments: Mapping[str, Any], reading: Reading) -> Blueprint:
    if not path.name.endswith(FILE_SUFFIXES):
        raise CheckpointError(
            f"{path} is a {path.suffix or 'suffixless'} file; expected a checkpoint folder, "
            f"or a state dict ({', '.join(FILE_SUFFIXES)})."
        )
    if arch is not None:
        prefix, name = split_prefix(arch)
        return library_named(LIBRARIES[prefix or "hf"]).describe(name, arguments, reading)
    if arguments:
        raise UsageError("--arch-args need the model's name.", hint="Pass --arch timm:NAME beside them.")
    if (path.parent / CONFIG).is_file():
        return read_folder(path.parent, reading)
    raise UsageError(
        f"{path} is a state dict, which does not say what model it belongs to, and no {CONFIG} lies beside it.",
        hint=f"Pass --arch FOLDER, where FOLDER holds the model's {CONFIG} (and tokenizer), or --arch timm:NAME.",
    )
