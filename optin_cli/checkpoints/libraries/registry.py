"""What a checkpoint's config says of its model, and the libraries that build, save and feed such models.

A library is one module here and one row of the table below; the rest of the package asks through this interface
and never by a library's name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from optin_cli.architectures.registry import find_head
from optin_cli.architectures.schema import DepthRule, HeadRule, Purpose
from optin_cli.checkpoints.foreign import explaining
from optin_cli.checkpoints.sentences import Sentences, read_sentences
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.files import load_json
from optin_cli.tasks.schema import LabelMapRule

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from optin_cli.checkpoints.weights import State, Stored
    from optin_cli.model.config_counts import Settings


Preprocess = Callable[["Image"], "torch.Tensor"]
CONFIG = "config.json"
PLAN_KEY = "optin_plan"
"""Key of a config under which a cut checkpoint keeps the plan that gives the library's own model the pruned shapes."""
MODELING = "modeling_optin.py"


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model takes: (rows, channels, height, width) under the keyword `input_name`.

    fixed: whether preprocessing makes every image this size, or only square ones. resized: whether the user asked for
    the size, to which preprocessing then scales.
    """

    input_name: str
    channels: int
    height: int
    width: int
    fixed: bool = True
    resized: bool = False

    @classmethod
    def of(cls, name: str, shape: Sequence[int], *, fixed: bool = True) -> ImageSpec:
        """Images of a shape (channels, height, width)."""
        channels, height, width = map(int, shape)
        return cls(name, channels, height, width, fixed)

    @property
    def mode(self) -> str:
        """Pillow's mode of images with as many channels."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class MapDecoder:
    """How a checkpoint's own preprocessing explains label maps and turns the model's outputs into such.

    rule: what it says of ids. decode: from the outputs by name of one image, each with a batch axis of 1, and (height,
    width) to the class of every pixel, (height, width) int64.
    """

    rule: LabelMapRule
    decode: Callable[[Mapping[str, torch.Tensor], tuple[int, int]], torch.Tensor]


@dataclass(frozen=True)
class Blueprint:
    """What a config says, before any weight is read.

    library: the one that builds the model. folder: where config, tokenizer and processor lie, None where a weights
    file stands alone. identity: the config's bytes. kind: what architecture descriptions are looked up by. auto_class:
    what loads such a model, the key of what its head puts out: an auto class of transformers, or timm.create_model.
    image: None for a model that takes text. num_labels: classes of the head; label_names: their names in order, where
    they are known. problem_type: what the head was trained for, by transformers' names. plan: how the model was pruned
    already. prototype: what `Library.build` starts from, a model class or an uncut model. sentences: what
    sentence-transformers make of the folder, if it is theirs. opened_as: the auto class that the user asked for in
    place of the class that the folder names. licence: of the weights, where the config names it.
    """

    library: str
    folder: Path | None
    identity: bytes
    config: Any
    kind: str
    auto_class: str
    model_class: str
    image: ImageSpec | None
    num_labels: int
    label_names: tuple[str, ...] | None
    problem_type: str | None
    plan: dict[str, Any] | None
    prototype: Any
    sentences: Sentences | None = None
    opened_as: str | None = None
    licence: str | None = None

    @property
    def builder(self) -> Library:
        """The library."""
        return library_named(self.library)

    @property
    def purpose(self) -> Purpose:
        """The kind of task that the model is for, by its head and problem type."""
        return self.head.purpose_for(self.problem_type)

    @property
    def head(self) -> HeadRule:
        """What its head puts out."""
        return find_head(self.auto_class, self.model_class)

    def at_size(self, size: tuple[int, int], name: str) -> Blueprint:
        """The same with images of a height and width that the user asks for; name: of the checkpoint, for messages.

        Raises UsageError: the model takes text, or preprocessing does not make that size.
        """
        if self.image is None:
            raise UsageError(f"--image-size is given, but {name} takes text.", hint="Leave it out.")
        if self.image.fixed and size == self.image.shape[1:]:
            return self
        image = replace(self.image, height=size[0], width=size[1], fixed=True, resized=True)
        return self.builder.at_size(self, image)


@dataclass(frozen=True)
class Reading:
    """How the user asks for a config to be read.

    architecture: an own description, with which the kind of model need not be known. as_class: the auto class to open
    it as, None for the class that the config names. foreign: whether the config was read from a file of the folder,
    whose weights then bound how large a model it may ask for.
    """

    architecture: Path | None = None
    as_class: str | None = None
    foreign: bool = True


@dataclass(frozen=True)
class Built:
    """A model with its weights, in evaluation mode.

    root: path of the base model in it. left_out: names of stored weights that have no place in it, such as those of a
    head that it was opened without. notes: what a user should know of how its weights were found. dtype: the floating
    type that most stored values have. types: where they have several, those of all tensors of the state dict, by name.
    stored: for a model on the meta device, its weights by name.
    """

    model: nn.Module
    root: str
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    dtype: torch.dtype
    types: Mapping[str, torch.dtype]
    stored: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Mapped:
    """A model whose weights stay in their files, memory-mapped: paths of its blocks, and the floating type there."""

    blocks: tuple[str, ...]
    dtype: torch.dtype


class Library(Protocol):
    """One library of models."""

    def owns(self, raw: Mapping[str, Any]) -> bool:
        """Whether a decoded config.json is one of this library's."""

    def read(self, folder: Path, raw: dict[str, Any], reading: Reading) -> Blueprint:
        """Understand a decoded config.

        Raises:
            CheckpointError: the config is unsound. ArchitectureError: nothing describes its kind of model.
            UsageError: the library has no such class to open it as.
        """

    def describe(self, name: str, arguments: Mapping[str, Any], reading: Reading) -> Blueprint:
        """Understand the name of a model (or config folder) and arguments that its weights file was made with."""

    def repository(self, name: str) -> str:
        """Hub repository that holds the model of that name."""

    def build(self, blueprint: Blueprint, stored: Stored, name: str) -> Built:
        """The model with its weights, the ones among `stored` that fit it (CheckpointError if none do, or not all)."""

    def build_streamed(self, blueprint: Blueprint, stored: Stored, name: str) -> Built:
        """The same on the meta device, with `Built.stored` (CheckpointError if its weights cannot be streamed)."""

    def preprocess(self, blueprint: Blueprint) -> Preprocess:
        """What turns an image into what the model was trained to see, (channels, height, width) float32."""

    def at_size(self, blueprint: Blueprint, image: ImageSpec) -> Blueprint:
        """The same with images of another size (UsageError where preprocessing does not make that size)."""

    def map_decoder(self, blueprint: Blueprint) -> MapDecoder:
        """How label maps are read and made, for a model of semantic segmentation (CheckpointError if it is unknown)."""

    def with_blocks(self, blueprint: Blueprint, model: Any | None, rule: DepthRule, kept: Sequence[int]) -> Blueprint:
        """A blueprint of the model with these blocks left; model: one in memory, whose config is changed too."""

    def save(self, blueprint: Blueprint, model: Any, state: State, plan: dict[str, Any], folder: Path) -> None:
        """Write weights and config of a cut model into a folder."""

    def plain_shapes(self, blueprint: Blueprint, settings: Settings) -> dict[str, tuple[int, ...]]:
        """Shapes by name of the weights that the library builds by `settings` (CheckpointError if it refuses them)."""

    def save_plain(self, blueprint: Blueprint, model: Any, state: State, settings: Settings, folder: Path) -> None:
        """Write weights and the config with `settings` into a folder, one like any other of the library."""

    def modeling(self, blueprint: Blueprint) -> str:
        """Code that follows the text of `modeling_optin.py` in the module beside the weights of a cut checkpoint."""

    def reloading(self, blueprint: Blueprint, *, plain: bool = False, mapped: Mapped | None = None) -> tuple[str, str]:
        """How to load a cut folder without optin: words, and code for `model`.

        plain: by the library's own class. mapped: for a model that memory cannot hold in float32.
        """

    def loading(self, blueprint: Blueprint, *, plain: bool = False) -> str:
        """How a reader of the model card loads a cut folder: lines of Python."""


LIBRARIES: Mapping[str, str] = MappingProxyType({"hf": "transformers", "timm": "timm"})
"""Modules of this package by the prefix of --arch."""


def library_named(name: str) -> Library:
    """The library of a name (transformers, timm)."""
    return cast(Library, importlib.import_module(f"{__package__}.{name}"))


def split_prefix(name: str) -> tuple[str | None, str]:
    """Split timm:NAME and hf:NAME; (None, name) where there is no prefix."""
    prefix, mark, rest = name.partition(":")
    return (prefix, rest) if mark and prefix in LIBRARIES else (None, name)


def read_folder(folder: Path, reading: Reading = Reading()) -> Blueprint:
    """What the config of a folder says, by the library that it belongs to (CheckpointError if no library knows it).

    Of a folder of sentence-transformers, the config is that of its transformer, which is opened as the class that they
    use; as another class, it is a model like any other.
    """
    sentences = read_sentences(folder)
    if sentences is not None:
        folder = sentences.encoder
    path = folder / CONFIG
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{folder} has no {CONFIG}: found {found}.",
            hint="Expected a folder written by save_pretrained, by timm or by optin prune.",
        )
    try:
        raw = load_json(path, foreign=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    for library in map(library_named, LIBRARIES.values()):
        if isinstance(raw, dict) and library.owns(raw):
            with explaining(f"{path} is not a sound config"):
                return _read_by(library, folder, raw, reading, sentences)
    raise CheckpointError(
        f"{path} names no model_type, so it is not a transformers config, and no architecture of timm."
    )


def _read_by(
    library: Library, folder: Path, raw: dict[str, Any], reading: Reading, sentences: Sentences | None
) -> Blueprint:
    """What a decoded config says; of a folder of sentence-transformers as the class that they use."""
    if sentences is None:
        return library.read(folder, raw, reading)
    if reading.as_class in (None, sentences.auto_class):
        own = library.read(folder, raw, replace(reading, as_class=sentences.auto_class))
        return replace(own, sentences=sentences, opened_as=None)
    return replace(library.read(folder, raw, reading), opened_as=reading.as_class)


def parse_arguments(text: str | None) -> dict[str, Any]:
    """Read `img_size=112,num_classes=10`: values are JSON, or else text (UsageError if a part is not KEY=VALUE)."""
    found: dict[str, Any] = {}
    for part in (text or "").split(",") if text else []:
        key, mark, value = part.partition("=")
        if not mark or not key.strip().isidentifier():
            raise UsageError(f"{part!r} in --arch-args is not KEY=VALUE.", hint="Such as img_size=112,num_classes=10.")
        try:
            found[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[key.strip()] = value.strip()
    return found
