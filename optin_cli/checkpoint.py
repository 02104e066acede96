"""A path or hub id in; a loaded model with its structure, tokenizer and hash out.

Reads Hugging Face folders, folders that `optin prune` wrote (without running the code in them), and single
state-dict files with a config folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.architectures import Architecture, find_architecture, known_heads, parse_architecture
from optin_cli.artifacts import Source
from optin_cli.errors import CheckpointError, UsageError, did_you_mean
from optin_cli.files import sha256_of
from optin_cli.runtime import apply_plan
from optin_cli.structure import Structure, find_structure
from optin_cli.weights import FILE_SUFFIXES, State, read_state, storage_dtype, strip_prefix, weight_files

CONFIG = "config.json"
PLAN_KEY = "optin_plan"
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory with all that is known of its origin.

    `folder` holds config and tokenizer; `root` is the path of the base model inside `model`; `weight_bytes`
    and `dtype` are those of the stored weights, whatever type the model computes in.
    """

    name: str
    folder: Path
    sha256: str
    model: nn.Module
    config: Any
    structure: Structure
    auto_class: str
    model_class: str
    root: str
    dtype: torch.dtype
    weight_bytes: int
    plan: dict[str, Any] | None

    @property
    def source(self) -> Source:
        """Name and hash, as artifacts record them."""
        return Source(name=self.name, sha256=self.sha256)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def problem_type(self) -> str | None:
        """What the head was trained for, by transformers' names."""
        return _problem_type(self.config)

    def tokenizer(self) -> Any:
        """Load the tokenizer.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        from transformers import AutoTokenizer

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


def load_checkpoint(
    source: str | Path,
    *,
    arch: str | None = None,
    architecture: Path | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        source: a folder, a state-dict file, or a model-hub id.
        arch: for a state-dict file, the folder (or hub id) that holds its config.json; "hf:" in front is allowed.
        architecture: a description to use instead of the shipped one.
        device: where to put the model.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, unsafe or unsound.
        ArchitectureError: no description fits it.
    """
    target = pick_device(device)
    path = Path(source)
    if path.is_file():
        folder, files = _arch_folder(path, arch), [path]
    else:
        if arch is not None:
            raise UsageError(f"--arch names the config of a single weights file, but {source} is not a file.")
        folder = path if path.is_dir() else _download(str(source))
        files = []
    description = parse_architecture(architecture) if architecture else None
    config = _read_config(folder, description)
    description = description or find_architecture(config.model_type)
    files = files or weight_files(folder)
    auto_class, model_class = _find_class(config)
    state = read_state(files)
    plan = getattr(config, PLAN_KEY, None)
    model = _build(model_class, config, plan, state, auto_class, str(source))
    root = next(name for name, module in model.named_modules() if module is model.base_model)
    return Checkpoint(
        name=path.stem if path.is_file() else path.resolve().name if path.is_dir() else str(source),
        folder=folder,
        sha256=sha256_of(folder / CONFIG, *files),
        model=model.to(target),
        config=config,
        structure=_structure(model, description, auto_class, root, config),
        auto_class=auto_class,
        model_class=model_class.__name__,
        root=root,
        dtype=storage_dtype(state),
        weight_bytes=sum(f.stat().st_size for f in files),
        plan=plan,
    )


def _structure(model: nn.Module, description: Architecture, auto_class: str, root: str, config: Any) -> Structure:
    head = known_heads()[auto_class]
    return find_structure(model, description, head, root=root, problem_type=_problem_type(config))


def _problem_type(config: Any) -> str | None:
    if config.problem_type is None and config.num_labels == 1:
        return "regression"
    found = config.problem_type
    return None if found is None else str(found)


def _arch_folder(path: Path, arch: str | None) -> Path:
    if path.suffix not in FILE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a {path.suffix or 'suffixless'} file; expected a checkpoint folder, "
            f"or a state dict ({', '.join(FILE_SUFFIXES)})."
        )
    if arch is not None:
        name = arch.removeprefix("hf:")
        return Path(name) if Path(name).is_dir() else _download(name)
    if (path.parent / CONFIG).is_file():
        return path.parent
    raise UsageError(
        f"{path} is a state dict, which does not say what model it belongs to, and no {CONFIG} lies beside it.",
        hint=f"Pass --arch FOLDER, where FOLDER holds the model's {CONFIG} (and tokenizer).",
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    local = CheckpointError(
        f"{name} does not exist here, and no model hub could supply it.",
        hint="Expected a checkpoint folder, a state-dict file, or the id of a model on a reachable hub "
        "(or in its local cache).",
    )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in FILE_SUFFIXES:
        raise CheckpointError(f"{name} does not exist.", hint="Expected a checkpoint folder or a state-dict file.")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise local from error


def _read_config(folder: Path, description: Architecture | None) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = folder / CONFIG
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{folder} has no {CONFIG}: found {found}.",
            hint="Expected a folder written by save_pretrained or by optin prune.",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise CheckpointError(f"{path} names no model_type, so it is not a transformers config.")
    if description is None:
        find_architecture(str(raw["model_type"]))
    try:
        return AutoConfig.for_model(**raw)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        shown = " ".join(str(error).split())
        raise CheckpointError(f"{path} is refused by transformers: {shown}") from error


def _find_class(config: Any) -> tuple[str, Any]:
    """The auto class whose mapping holds the config's model class, and that class."""
    import transformers

    names = list(config.architectures or [])
    candidates: dict[str, tuple[str, Any]] = {}
    for auto_class in known_heads():
        mapping = getattr(transformers, auto_class)._model_mapping
        if type(config) in mapping:
            model_class = mapping[type(config)]
            candidates[model_class.__name__] = (auto_class, model_class)
    for name in names:
        if name in candidates:
            return candidates[name]
    found = f"the model class {names[0]}" if names else "no model class (architectures)"
    raise CheckpointError(
        f"The config names {found}, which optin has no outputs to compare for.",
        hint=did_you_mean(names[0] if names else "", candidates),
    )


def planned_class(model_class: Any) -> Any:
    """A model class that takes the shapes of its config's cut plan as soon as it is built."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        apply_plan(self, getattr(config, PLAN_KEY))

    return type(model_class.__name__, (model_class,), {"__init__": build})


def _build(model_class: Any, config: Any, plan: Any, state: State, auto_class: str, name: str) -> Any:
    kind = planned_class(model_class) if plan else model_class
    try:
        with torch.device("meta"):
            expected = set(kind(config).state_dict())
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=strip_prefix(state, expected),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        shown = "\n".join(str(error).strip().splitlines()[:6])
        raise CheckpointError(f"{name} does not load as {model_class.__name__}: {shown}") from error
    optional = known_heads()[auto_class].may_miss
    missing = sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in optional)
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} weight(s) that {model_class.__name__} needs: {', '.join(missing[:5])}"
            + ("…" if len(missing) > 5 else "."),
            hint="Transformers would fill them with random numbers. Pass the whole checkpoint, "
            "or a config whose architectures names the class that was trained.",
        )
    return model.eval().requires_grad_(False)
