"""Forward passes that start behind the blocks whose outputs are known already."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.files import OutputError
from optin_cli.model.forward import StopForward, hooks, run_until_stopped
from optin_cli.model.readout import run_hidden
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group

TRIED = 32
"""Tokens on which it is tried what a block reads."""


@contextlib.contextmanager
def captured(model: nn.Module, structure: Structure) -> Iterator[list[tuple[str, Any]]]:
    """Record (block path, raw output) of every block call, in order, while the context lasts.

    Raw is what the block itself computes: where tokens then merge, they do so again when it is replayed.
    """
    calls: list[tuple[str, Any]] = []
    with hooks() as hook:
        for block in structure.blocks:

            def record(_module: nn.Module, _inputs: Any, output: Any, path: str = block.path) -> None:
                calls.append((path, output))

            hook.after(model.get_submodule(block.path), record, prepend=True)
        yield calls


@contextlib.contextmanager
def replayed(model: nn.Module, structure: Structure, outputs: Sequence[Any]) -> Iterator[None]:
    """The first len(outputs) block calls return the given outputs without computing; the rest run."""
    position = 0
    modules = {block.path: model.get_submodule(block.path) for block in structure.blocks}
    originals: dict[str, Any] = {path: module.__dict__.get("forward") for path, module in modules.items()}

    def stub(compute: Any) -> Any:
        @functools.wraps(compute)  # what merges tokens looks for an argument of the block's forward
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal position
            position += 1
            return outputs[position - 1] if position <= len(outputs) else compute(*args, **kwargs)

        return forward

    try:
        for module in modules.values():
            module.forward = stub(module.forward)
        yield
    finally:
        for path, module in modules.items():
            del module.forward
            if originals[path] is not None:
                module.forward = originals[path]


def store(value: Any, path: Path) -> None:
    """Write tensors to a temporary file (OutputError where it has no room)."""
    # Torch's own writer of files ends the process when the disk is full.
    content = io.BytesIO()
    torch.save(value, content)
    try:
        path.write_bytes(content.getbuffer())
    except OSError as error:
        raise OutputError(
            f"{path.parent} has no room for the outputs of layers, which wait there: {error.strerror}.",
            hint="Set TMPDIR to a folder on a larger disk, or use fewer --samples.",
        ) from error


@torch.no_grad()
def is_chain(model: nn.Module, structure: Structure, batch: Batch) -> bool:
    """Whether each block reads the output of the one before it, and nothing else that depends on a block.

    Tried on one sample, of texts their beginning: each block has to compute the same when all blocks before it give
    what the last of them does.
    """
    inputs = {name: tensor[:1, :TRIED] if tensor.dim() == 2 else tensor[:1] for name, tensor in batch.inputs.items()}
    with captured(model, structure) as calls:
        run_hidden(model, structure, inputs)
    outputs = [output for _, output in calls]
    if not all(isinstance(output, torch.Tensor) and output.shape == outputs[0].shape for output in outputs):
        return False
    if len(outputs) != len(structure.blocks):
        return False
    for depth, block in list(enumerate(structure.blocks))[2:]:
        found: list[torch.Tensor] = []

        def stop(_module: nn.Module, _inputs: Any, output: torch.Tensor, found: list[torch.Tensor] = found) -> None:
            found.append(output)
            raise StopForward

        with replayed(model, structure, [outputs[depth - 1]] * depth), hooks() as hook:
            hook.after(model.get_submodule(block.path), stop, prepend=True)
            run_until_stopped(model, inputs)
        if not found or not torch.equal(found[0], outputs[depth]):
            return False
    return True


class Prefixes:
    """Outputs of the first blocks of a model for every batch, kept in temporary files rather than in memory.

    What walks a model from its first block to its last, changing weights as it goes, runs every batch again for
    each change; blocks before it stay as they are, so that their outputs are computed once. Blocks whose module
    runs several times (shared weights) are never skipped beyond its first run.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Sequence[Batch],
        *,
        chain: bool = False,
        numbers: Sequence[int] | None = None,
        folder: Path | None = None,
        start: str | None = None,
        known: Callable[[str, int], Any | None] = lambda _block, _number: None,
    ) -> None:
        """Watch a model run once.

        Args:
            chain: whether nothing but the next block reads a block's output, so that the last is all it takes.
            numbers: of the batches that run, None for all.
            folder: for the files, which stay there; None for a temporary one.
            start: name of the block before which outputs lie in the folder already, None for no such.
            known: gives the output of a block, by its name, for the number of a batch; None where it has to be run.
        """
        self.model, self.structure, self.batches, self._chain, self._known = model, structure, batches, chain, known
        self._numbers = range(len(batches)) if numbers is None else numbers
        self._scratch = tempfile.TemporaryDirectory() if folder is None else None
        self._folder = folder or Path(self._scratch.name if self._scratch is not None else "")
        order: list[str] = []
        with hooks() as hook, torch.no_grad():
            for block in structure.blocks:
                hook.after(model.get_submodule(block.path), functools.partial(_note, order, block.path))
            run_hidden(model, structure, batches[0].inputs)
        self._first = {block.name: order.index(block.path) for block in structure.blocks if block.path in order}
        self._depth = self._stored = 0 if start is None else self._first[start]

    def __enter__(self) -> Prefixes:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    def advance(self, group: Group) -> None:
        """Keep the outputs of the blocks before that of `group`, which must not change any more."""
        depth = self._first.get(group.block, 0)
        if depth <= self._depth:
            return
        self._depth = min(depth, self._stored)
        for step in range(self._stored + 1, depth + 1):  # one block over all batches: it may have to be read first
            for number in self._numbers:
                for index, output in enumerate(self._outputs(number, self.batches[number], step), start=self._depth):
                    store(output, self._file(number, index))
            self._depth = self._stored = step
            self._forget()
        self._depth = self._stored = depth
        self._forget()

    @contextlib.contextmanager
    def skipping(self, number: int) -> Iterator[None]:
        """Let forward passes of batch `number` return the kept outputs instead of computing those blocks."""
        # Mapped, since of all but the last hardly any is read.
        read = range(max(self._depth - 1, 0) if self._chain else 0, self._depth)
        outputs = [torch.load(self._file(number, index), weights_only=True, mmap=True) for index in read]
        outputs = outputs * self._depth if self._chain else outputs
        with replayed(self.model, self.structure, outputs) if outputs else contextlib.nullcontext():
            yield

    def _outputs(self, number: int, batch: Batch, depth: int) -> list[Any]:
        """Outputs of the blocks from the last kept one up to `depth`, which is one block if something knows them."""
        block = next((name for name, first in self._first.items() if first == self._depth), None)
        given = self._known(block, number) if block is not None and depth == self._depth + 1 else None
        return self._run(number, batch, depth) if given is None else [given]

    def _run(self, number: int, batch: Batch, depth: int) -> list[Any]:
        """Outputs of the blocks from the last kept one up to `depth`."""
        found: list[Any] = []
        seen = 0

        def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal seen
            seen += 1
            if seen > self._depth:
                found.append(output)
            if seen == depth:
                raise StopForward

        with hooks() as hook, self.skipping(number):
            for path in dict.fromkeys(block.path for block in self.structure.blocks):
                hook.after(self.model.get_submodule(path), collect, prepend=True)
            run_until_stopped(self.model, batch.inputs)
        return found

    def _forget(self) -> None:
        """Remove outputs that are not asked for any more; where files stay, by a run that goes on from here either."""
        unread = self._depth - (2 if self._scratch is not None else 3)
        for number in self._numbers if self._chain else ():
            self._file(number, unread).unlink(missing_ok=True)

    def _file(self, number: int, index: int) -> Path:
        return self._folder / f"{number}.{index}"


def _note(order: list[str], path: str, *_call: Any) -> None:
    """Add the path of a block that ran."""
    order.append(path)
