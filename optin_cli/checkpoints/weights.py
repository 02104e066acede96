"""Read weights files and find the state dict in them that a model was saved as.

Files are safetensors, or torch files read under `weights_only=True`. Training checkpoints nest their state dict under
keys of their own and put names before those of the model; both are prefixes of a tensor's full name, so that one rule
finds the weights: the prefix under which most names of the model lie.
"""

import argparse
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from optin_cli.artifacts.tensor_files import require_few_axes
from optin_cli.errors import CheckpointError, headline

State = dict[str, torch.Tensor]
Types = Mapping[str, torch.dtype]
NESTS = ("state_dict", "model")
"""Keys of training checkpoints whose weights are taken where several keys hold weights of the model."""
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""Components that wrappers of torch and of training loops put into names: parallel, compiled, checkpointed modules."""
COUNTER = "num_batches_tracked"
TORCH_STARTS = (b"PK", b"\x80")
"""First bytes of a zip archive and of a pickle, the two forms of torch files."""
MOST_REPEATED = 1 << 24
"""Bytes of a tensor that a file may store less of, as views that repeat a row do."""
SHOWN = 5
"""Names that messages list."""
QUANTIZE_LATER = "Prune the original in 16 or 32 bits, then quantize what prune writes."


@dataclass(frozen=True)
class Stored:
    """All tensors of a checkpoint's files.

    tensors: by full name, the keys of the mappings around a tensor and its own, joined by dots. nests: the mapping that
    each tensor lies in, by its full name; "" where it lies in none.
    """

    tensors: State
    nests: Mapping[str, str]


@dataclass(frozen=True)
class Fitted:
    """The state dict among stored tensors that fits a model.

    left_out: tensors beside it that belong to the same mapping, by their names there. key: what its names begin with in
    the file. others: the same of further state dicts that fit as well and are not used.
    """

    state: State
    left_out: tuple[str, ...] = ()
    key: str = ""
    others: tuple[str, ...] = ()


def read_stored(files: list[Path]) -> Stored:
    """Read all tensors of all files (CheckpointError if a file is missing, cut short, or holds more than tensors)."""
    tensors, nests = State(), dict[str, str]()
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"The weights file {path} does not exist.")
        if path.stat().st_size == 0:
            raise CheckpointError(f"The weights file {path} is empty.")
        for nest, state in (_read_safetensors if path.suffix == ".safetensors" else _read_torch)(path):
            named = {f"{nest}.{name}" if nest else name: tensor for name, tensor in state.items()}
            tensors |= named
            nests |= dict.fromkeys(named, nest)
    return Stored(tensors, nests)


def read_state(files: list[Path]) -> State:
    """Read the mapping that holds most tensors, by their names in it; errors as of `read_stored` and `fit_state`."""
    stored = read_stored(files)
    state = _largest(stored)
    _require_finite(state)
    return state


def _largest(stored: Stored) -> State:
    counts = Counter(stored.nests.values())
    nest = min(counts, key=lambda name: (-counts[name], _rank(name)))
    return {full.removeprefix(f"{nest}."): stored.tensors[full] for full, of in stored.nests.items() if of == nest}


def _read_safetensors(path: Path) -> Iterator[tuple[str, State]]:
    try:
        require_few_axes(path)
        yield "", load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}.",
            hint="It may have been cut short while copying; fetch or save it again.",
        ) from error


def _read_torch(path: Path) -> Iterator[tuple[str, State]]:
    with path.open("rb") as stream:
        start = stream.read(16)
    if not start.startswith(TORCH_STARTS):
        raise CheckpointError(
            f"{path} is not a readable torch file: it starts with {start!r}.",
            hint="It may be a web page or a git-lfs pointer saved in place of the weights; fetch it again.",
        )
    try:
        # Training scripts store their arguments beside the weights; a namespace is a record of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, so it is refused: loading it could run code.",
            hint="Where it was made, save the weights alone: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise all kinds
        raise CheckpointError(f"{path} is not a readable torch file: {headline(error)}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict of tensors.")
    found = dict(_mappings(content))
    for state in found.values():
        _require_stored(state, path)
    if not found:
        raise CheckpointError(
            f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}."
        )
    yield from found.items()


def _require_stored(state: State, path: Path) -> None:
    """Refuse tensors that are not stored element by element: of little stored data they would take much memory."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise CheckpointError(f"{path} holds {name} as a {kind} tensor; expected dense ones.")
        size = tensor.numel() * tensor.element_size()
        if size > max(tensor.untyped_storage().nbytes(), MOST_REPEATED):
            raise CheckpointError(f"{path} holds {name} of shape {tuple(tensor.shape)}, more than the file stores.")


def _mappings(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, State]]:
    """Every mapping inside another that holds tensors, by the keys that lead to it, joined by dots."""
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if state:
        yield path, state
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _mappings(value, f"{path}.{name}".lstrip("."))


def fit_state(stored: Stored, expected: Mapping[str, torch.Tensor], name: str) -> Fitted:
    """Find the state dict that fits a model, whatever key it lies under and whatever its names begin with.

    Components that wrappers add to names are dropped wherever they stand. Where no name is one of the model's, the
    largest mapping is returned as it is, for the library to convert.

    Args:
        expected: the model's own state dict; of its tensors only type and name count.
        name: what messages call the checkpoint.

    Raises CheckpointError: several state dicts fit equally well, or the one that does is quantized, or holds NaN or
    infinite values.
    """
    plain = _unwrapped(stored.tensors, expected)
    counts = Counter(prefix for full in plain for prefix, rest in _splits(full) if rest in expected)
    if not counts:
        return Fitted(_largest(stored))
    most = max(counts.values())
    best = sorted((prefix for prefix, count in counts.items() if count == most), key=_rank)
    if len(best) > 1 and _rank(best[0]) == _rank(best[1]):
        shown = ", ".join(sorted(prefix.rstrip(".") or "its outermost keys" for prefix in best))
        raise CheckpointError(
            f"{name} holds {len(best)} state dicts that fit the model equally well: {shown}.",
            hint="Save the one to prune in a file of its own.",
        )
    prefix = best[0]
    used = {stored.nests[source] for full, source in plain.items() if full.removeprefix(prefix) in expected}
    inside = {full: source for full, source in plain.items() if stored.nests[source] in used}
    state = {full.removeprefix(prefix): stored.tensors[s] for full, s in inside.items() if full.startswith(prefix)}
    _require_unquantized(state, expected, name)
    _require_finite(state)
    kept = {source for full, source in inside.items() if full.startswith(prefix)}
    left_out = [
        source.removeprefix(f"{nest}.")
        for source, nest in stored.nests.items()
        if nest in used and source not in kept and stored.tensors[source].numel()
    ]
    return Fitted(state, tuple(left_out), prefix.rstrip("."), tuple(other.rstrip(".") for other in best[1:]))


def _unwrapped(tensors: State, expected: Iterable[str]) -> dict[str, str]:
    """Full names without the components of wrappers, and what they are stored as; a name that has none goes first."""
    own = {part for name in expected for part in name.split(".")}
    added = WRAPPERS - own
    found: dict[str, str] = {}
    for full in sorted(tensors, key=lambda name: not added.isdisjoint(name.split("."))):
        found.setdefault(".".join(part for part in full.split(".") if part not in added), full)
    return found


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way to take a name apart into a prefix, which ends with a dot or is empty, and the rest."""
    yield "", name
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[: place + 1], name[place + 1 :]


def _rank(prefix: str) -> tuple[int, ...]:
    """Where a prefix comes among those of weights that are meant: none first, then keys in the order of `NESTS`."""
    return tuple(NESTS.index(part) if part in NESTS else len(NESTS) for part in prefix.split(".") if part)


def _require_finite(state: State) -> None:
    """Refuse weights that are no numbers."""
    broken = [name for name, t in state.items() if t.is_floating_point() and not _is_finite(t)]
    if broken:
        raise CheckpointError(
            f"The weights hold NaN or infinite values in {len(broken)} tensor(s): {', '.join(broken[:5])}.",
            hint="Every score would be NaN. Save the checkpoint again from a sound training step.",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers alone; types of eight bits know no such question."""
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def _require_unquantized(state: State, expected: Mapping[str, torch.Tensor], name: str) -> None:
    """Refuse weights of eight bits or fewer: stored as such, or as whole numbers in place of a weight."""
    instead = {
        f"{key.rpartition('.')[0]}.weight" for key, t in state.items() if key not in expected and not _is_real(t)
    }
    packed = [
        key
        for key, tensor in expected.items()
        if tensor.is_floating_point() and (not _is_real(state[key]) if key in state else key in instead)
    ]
    if packed:
        kinds = {str(state[key].dtype).removeprefix("torch.") for key in packed if key in state}
        raise CheckpointError(
            f"{name} is quantized: {len(packed)} of its weights are "
            f"{', '.join(sorted(kinds)) or 'packed into whole numbers'}, such as {packed[0]}.",
            hint=QUANTIZE_LATER,
        )


def _is_real(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds real numbers of 16 or more bits."""
    return tensor.is_floating_point() and tensor.element_size() > 1


def with_counters(state: State, model: nn.Module) -> State:
    """The state with batch norms' counters, which files of old lack, at 0, as torch's own loading takes them."""
    return {key: torch.tensor(0) for key in model.state_dict() if key.rpartition(".")[2] == COUNTER} | state


def storage_dtype(state: State) -> torch.dtype:
    """The floating type that most stored values have."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def stored_types(state: State, load: Callable[[State], State]) -> Types:
    """The type that each tensor of a model was stored as, by the model's names; empty where all have one type.

    load: turns stored tensors into the model's, by its names. Libraries rename, join and split tensors: they are given
    tensors that hold the number of a type instead of weights. Of types that meet in one tensor the widest counts.
    """
    real = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    types = sorted({tensor.dtype for tensor in real.values()}, key=lambda dtype: (dtype.itemsize, str(dtype)))
    if len(types) < 2:
        return {}
    marks = state | {name: torch.full(t.shape, float(types.index(t.dtype))) for name, t in real.items()}
    loaded = {name: tensor for name, tensor in load(marks).items() if tensor.is_floating_point() and tensor.numel()}
    return {name: types[round(float(tensor.max()))] for name, tensor in loaded.items()}


def fitting_notes(fitted: Fitted, left_out: Sequence[str], name: str, model_class: str) -> tuple[str, ...]:
    """What a user should know of how the weights of the checkpoint `name` were found in its files."""
    notes = []
    if fitted.others:
        notes.append(f"{name} holds several sets of weights; {fitted.key} is used, not {', '.join(fitted.others)}.")
    if left_out:
        notes.append(f"{name}: {shown(left_out, 'tensor')} left out, which {model_class} has no place for.")
    return tuple(notes)


def shown(names: Sequence[str], noun: str) -> str:
    """How many there are of something, and the first few names."""
    more = "" if len(names) <= SHOWN else ", …"
    return f"{len(names)} {noun}{'s' * (len(names) != 1)} ({', '.join(sorted(names)[:SHOWN])}{more})"
