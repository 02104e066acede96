"""Save a pruned model as a folder that its library loads without optin."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.architectures.schema import EarlierRule
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.folders import CARD, FILE_SUFFIXES, MANIFEST
from optin_cli.checkpoints.libraries.registry import CONFIG, MODELING
from optin_cli.checkpoints.sentences import MODULES, rooted_modules
from optin_cli.checkpoints.weights import State
from optin_cli.errors import CheckpointError
from optin_cli.model import modeling_optin as runtime
from optin_cli.model.config_counts import Settings
from optin_cli.model.earlier import with_earlier
from optin_cli.model.plan import Plan

CARRIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
"""Files of a checkpoint that belong to any model cut from it: tokenizer, processor, licence."""
SNAPSHOTS = "snapshots"
"""Folder of a hub's cache whose folders hold links to files beside it."""
WEIGHTS = (*FILE_SUFFIXES, ".h5", ".ot", ".msgpack", ".onnx", ".xml", ".gguf")
"""Endings of weights in all formats that folders hold them in beside each other."""


def carried_files(checkpoint: Checkpoint) -> dict[Path, Path]:
    """The files of a checkpoint that go along with any model made from it, by their place in its folder, in order.

    Of a folder of sentence-transformers those are all but weights, config and card of the transformer. Wherever that
    lies there, its files go into the folder itself.
    """
    source, sentences = checkpoint.blueprint.folder, checkpoint.blueprint.sentences
    if source is None:
        return {}
    found = {Path(path.name): path for pattern in CARRIED for path in source.glob(pattern)}
    if sentences is not None:
        for folder in (sentences.folder, source):
            found |= {Path(path.name): path for path in folder.iterdir() if not _is_replaced(path)}
        for stage in sentences.stages:
            found |= {path.relative_to(sentences.folder): path for path in stage.folder.rglob("*")}
    files = {place: path for place, path in sorted(found.items()) if path.is_file()}
    for path in files.values():
        _require_own(path, source if sentences is None else sentences.folder)
    return files


def _require_own(path: Path, folder: Path) -> None:
    """Refuse a link out of a folder (CheckpointError): what it leads to would be copied. Caches of hubs are links."""
    cache = folder.parent.parent if folder.parent.name == SNAPSHOTS else folder
    if not any(path.resolve().is_relative_to(place.resolve()) for place in (folder, cache)):
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, outside the checkpoint's folder, whose content would be copied.",
            hint="Put the file itself in its place, or remove the link.",
        )


def _is_replaced(path: Path) -> bool:
    """Whether a file beside a transformer is one that a cut one has of its own, or in another format."""
    hidden, index = path.name.startswith("."), path.name.endswith(".index.json")
    return hidden or index or path.suffix in WEIGHTS or path.name in (CONFIG, CARD, MANIFEST, MODELING)


def carry_files(checkpoint: Checkpoint, folder: Path, present: Path) -> None:
    """Copy into a folder what goes along with a model, less what `present`, a folder too, has already."""
    sentences = checkpoint.blueprint.sentences
    for place, path in carried_files(checkpoint).items():
        if (present / place).exists():
            continue
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place)
        if place == Path(MODULES) and sentences is not None and sentences.encoder != sentences.folder:
            (folder / place).write_text(rooted_modules(sentences), encoding="utf-8")


def round_to_storage(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Round the weights in memory to what storing them as the checkpoint's keeps, so that saving changes nothing."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(checkpoint.stored_as(name)).to(tensor.dtype))


def stored_state(state: State, checkpoint: Checkpoint) -> State:
    """A state dict in the checkpoint's storage types. Tied weights stay one tensor, which libraries store once."""
    made: dict[tuple[int, int], torch.Tensor] = {}
    stored: State = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and place in made and made[place].shape == tensor.shape:
            stored[name] = made[place]
            continue
        kept = tensor.to(checkpoint.stored_as(name)) if tensor.is_floating_point() else tensor
        stored[name] = made[place] = kept.contiguous()
    return stored


def modeling_source(checkpoint: Checkpoint) -> str:
    """Text of the self-contained module beside the weights."""
    text = Path(runtime.__file__).read_text(encoding="utf-8")
    return text + checkpoint.blueprint.builder.modeling(checkpoint.blueprint)


def suit_earlier(path: Path, rule: EarlierRule) -> None:
    """Change a config so that earlier versions of the library, too, read from it what it says."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    for theirs, ours in rule.config.items():
        owner, leaf = _owner(raw, ours)
        if owner.get(leaf) is not None and not any(_states(raw, ours, *one) for one in rule.absent.items()):
            raw.setdefault(theirs, owner[leaf])
    for key in rule.unread:
        owner, leaf = _owner(raw, key)
        owner.pop(leaf, None)
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _states(raw: dict[str, Any], ours: str, key: str, value: str) -> bool:
    """Whether a dotted key inside `ours` has a value."""
    owner, leaf = _owner(raw, key)
    return key.startswith(f"{ours}.") and owner.get(leaf) == value


def _owner(raw: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a dotted key, empty where there is none, and the key's last component."""
    *outer, leaf = dotted.split(".")
    for key in outer:
        raw = raw.get(key) or {}
    return raw, leaf


def save_cut(
    checkpoint: Checkpoint,
    model: Any,
    plan: Plan,
    folder: Path,
    *,
    settings: Settings | None = None,
    state: State | None = None,
) -> None:
    """Write weights, config, modelling code and carried files of a cut model into an existing folder.

    Weights keep the storage type of the checkpoint, and the config gains the plan. settings: keys of the library's own
    config that state the pruned sizes; the folder then needs neither plan nor code. state: the model's state dict,
    where its blocks are not in memory.
    """
    blueprint = checkpoint.blueprint
    state = stored_state(model.state_dict() if state is None else state, checkpoint)
    if settings is None:
        written_by = blueprint.library, importlib.metadata.version(blueprint.library)
        complete = with_earlier(plan, model, checkpoint.structure.earlier, written_by)
        blueprint.builder.save(blueprint, model, state, complete.model_dump(mode="json"), folder)
        (folder / MODELING).write_text(modeling_source(checkpoint), encoding="utf-8")
    else:
        blueprint.builder.save_plain(blueprint, model, state, settings, folder)
    if (rule := checkpoint.structure.earlier) is not None and (rule.config or rule.unread):
        suit_earlier(folder / CONFIG, rule)
    carry_files(checkpoint, folder, folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(folder / CONFIG)
