"""Read weights files as flat state dicts of tensors alone: safetensors, or torch files under `weights_only=True`."""

import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from optin_cli.errors import CheckpointError, headline

State = dict[str, torch.Tensor]
NESTS = ("state_dict", "model")
TORCH_STARTS = (b"PK", b"\x80")
"""First bytes of a zip archive and of a pickle, the two forms of torch files."""


def read_state(files: list[Path]) -> State:
    """Read and merge files (CheckpointError if one is missing, cut short, or holds more than finite tensors)."""
    state: State = {}
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"The weights file {path} does not exist.")
        if path.stat().st_size == 0:
            raise CheckpointError(f"The weights file {path} is empty.")
        state.update(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path))
    broken = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(
            f"The weights hold NaN or infinite values in {len(broken)} tensor(s): {', '.join(broken[:5])}.",
            hint="Every score would be NaN. Save the checkpoint again from a sound training step.",
        )
    return state


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}.",
            hint="It may have been cut short while copying; fetch or save it again.",
        ) from error


def _read_torch(path: Path) -> State:
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start.startswith(TORCH_STARTS):
        raise CheckpointError(
            f"{path} is not a readable torch file: it starts with {start!r}.",
            hint="It may be a web page or a git-lfs pointer saved in place of the weights; fetch it again.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, so it is refused: loading it could run code.",
            hint="Where it was made, save the weights alone: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable torch file: {headline(error)}.") from error
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict of tensors.")
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}."
        )
    return state


def strip_prefix(state: State, expected: set[str]) -> State:
    """Drop leading name components that all weights share (module., model., …) while that fits the model better."""
    best, score = state, len(expected & set(state))
    current = state
    while len(heads := {name.partition(".")[0] for name in current}) == 1 and all("." in n for n in current):
        prefix = heads.pop() + "."
        current = {name.removeprefix(prefix): value for name, value in current.items()}
        if (fit := len(expected & set(current))) > score:
            best, score = current, fit
    return best


def storage_dtype(state: State) -> torch.dtype:
    """The floating type that most stored values have."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32
