"""Pruned models larger than memory: a block is cut when it is opened, and lies in a file once it changes no more."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optin_cli.artifacts.costs import BLOCK, HEAD_DIM, TOKEN
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.libraries.registry import Mapped
from optin_cli.checkpoints.pages import Pages, paging
from optin_cli.checkpoints.save import stored_state
from optin_cli.checkpoints.streaming import REST, Streaming
from optin_cli.checkpoints.weights import State
from optin_cli.errors import ArtifactError
from optin_cli.model.cut import cut
from optin_cli.model.lookup import attribute_at
from optin_cli.model.outline import find_outline
from optin_cli.model.plan import Plan
from optin_cli.model.structure import Structure
from optin_cli.model.units import Keeping
from optin_cli.progress import SILENT, Progress


class CutState(Mapping[str, torch.Tensor]):
    """The tensors of a pruned model's blocks by name, none of which is in memory for longer than it is used.

    A block's are cut from the original's stored ones until they are put away as they are.
    """

    def __init__(self, model: nn.Module, source: Streaming, structure: Structure, kept: Keeping) -> None:
        """Args: model: the pruned one, without weights in its blocks. source: the original."""
        self._model, self._source = model, source
        self._put_away: State = {}
        self._cuts: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for group in structure.groups:
            for piece in group.slices if len(kept.get(group.name, range(group.units))) < group.units else ():
                index = piece.indices(group.units, kept[group.name])
                self._cuts.setdefault(piece.parameter, []).append((piece.axis, index))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._put_away:
            return self._put_away[name]
        tensor = self._source.stored[name]
        for axis, index in self._cuts.get(name, []):
            tensor = tensor.index_select(axis, index)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._model.state_dict() if not self._source.owns(REST, name))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def put_away(self, state: State, file: Path) -> None:
        """Write tensors into a file, from which they are mapped then."""
        save_file(state, file)
        self.take_back(file)

    def take_back(self, file: Path) -> State:
        """Tensors that were put away into a file, mapped."""
        found = load_file(file)
        self._put_away |= found
        return found


@dataclass(frozen=True)
class Parts:
    """The blocks of a pruned model, of which few are open at a time.

    state: their tensors. pages: opens them as they run. folder: for those that change no more; settled: which these
    are.
    """

    checkpoint: Checkpoint
    model: nn.Module
    streaming: Streaming
    state: CutState
    pages: Pages
    folder: Path
    settled: set[str] = field(default_factory=set)

    @property
    def mapped(self) -> Mapped:
        """How the files that are made of them are loaded."""
        types = {self.checkpoint.dtype, *self.checkpoint.types.values()}
        return Mapped(self.streaming.blocks, self.checkpoint.dtype if len(types) == 1 else self.streaming.dtype)

    def arrive(self, path: str) -> None:
        """Keep a block open that is changed now, and settle those before it."""
        for before in self.streaming.blocks[: self.streaming.blocks.index(path)]:
            self.settle(before)
        self.pages.keep(path)

    def settle(self, path: str) -> None:
        """Write a block as it is stored, which rounds it, and close it."""
        if path in self.settled:
            return
        self.pages.open(path)
        own = {name: tensor for name, tensor in self.model.state_dict().items() if self.streaming.owns(path, name)}
        self.state.put_away(stored_state(own, self.checkpoint), self._file(path))
        self.pages.close(path)
        self.settled.add(path)

    def restore(self, path: str) -> None:
        """Take the blocks before one from the files of an interrupted run (ArtifactError if they are gone)."""
        for before in self.streaming.blocks[: self.streaming.blocks.index(path)]:
            file = self._file(before)
            if not file.is_file():
                raise ArtifactError(
                    f"{file} is gone, from which the interrupted run would go on.",
                    hint="Leave out --resume to start over.",
                )
            self.pages.close(before)
            for name, tensor in self.state.take_back(file).items():
                if attribute_at(self.model, name) is None:  # a bias that refit gave to a consumer
                    owner, _, leaf = name.rpartition(".")
                    added = nn.Parameter(tensor.to("meta", self.streaming.dtype), requires_grad=False)
                    setattr(self.model.get_submodule(owner), leaf, added)
            self.settled.add(before)

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"

    def stored(self, progress: Progress = SILENT) -> State:
        """The whole state dict as it is stored; what blocks hold is mapped from files, not in memory."""
        for number, path in enumerate(self.streaming.blocks):
            progress.update(number, len(self.streaming.blocks), f"saving {path}")
            self.settle(path)
        return {
            name: self.state[name] if tensor.is_meta else tensor for name, tensor in self.model.state_dict().items()
        }


@contextlib.contextmanager
def cut_parts(
    checkpoint: Checkpoint, source: Streaming, kept: Keeping, folder: Path, *, lasting: bool = False
) -> Iterator[tuple[Parts, Plan]]:
    """A pruned copy of a streamed model, and its plan. Both models can be run while it lasts.

    Args:
        source: the checkpoint's model. folder: to hold files meanwhile, or lasting ones.

    Raises ArchitectureError: its blocks form no chain.
    """
    with contextlib.ExitStack() as stack:
        scratch = folder if lasting else Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        stack.enter_context(source.opened(REST))
        probe = checkpoint.input.probe(None)
        find_outline(source.model, checkpoint.structure, {name: t.to(source.device) for name, t in probe.items()})
        shared = [t for name, t in source.model.state_dict(keep_vars=True).items() if source.owns(REST, name)]
        model = copy.deepcopy(source.model, {id(tensor): tensor for tensor in shared})
        plan = cut(model, checkpoint.structure, kept)
        state = CutState(model, source, checkpoint.structure, kept)
        streaming = replace(source, model=model, stored=state)
        stack.enter_context(paging(source))
        pages = stack.enter_context(paging(streaming))
        yield Parts(checkpoint, model, streaming, state, pages, scratch), plan


def is_streamable(mask: Mask) -> bool:
    """Whether all that a mask removes are slices of blocks, by the kinds of its groups."""
    lost = [name for name, group in mask.groups.items() if len(group.kept) < group.units]
    return not any(name.rpartition(".")[2] in (BLOCK, HEAD_DIM, TOKEN) for name in lost)


def require_parts(structure: Structure, source: Streaming, kept: Keeping, name: str) -> None:
    """Refuse a mask by which a streamed model cannot be pruned (ArtifactError).

    Args:
        name: what messages call the mask.
    """
    lost = [group for group in kept if len(kept[group]) < structure.units[group]]
    groups = {group.name: group for group in structure.groups}
    if other := [group for group in lost if group not in groups]:
        raise ArtifactError(
            f"{name} masks {other[0]}; of a streamed model, only heads, neurons and other slices of a block can go.",
            hint="Search without such units, or pass --no-stream.",
        )
    for group in (groups[group] for group in lost):
        spread = [piece.parameter for piece in group.slices if not source.owns(group.block_path, piece.parameter)]
        if spread:
            raise ArtifactError(
                f"{name} masks {group.name}, whose weights {spread[0]} lie outside its block {group.block_path}; "
                "a streamed model is pruned block by block.",
                hint="Leave that group out of the mask, or pass --no-stream.",
            )
