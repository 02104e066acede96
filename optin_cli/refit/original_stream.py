"""Residual sums of the original model behind its consumers, each block computed once.

A refit asks for the original's residual stream behind every consumer in turn. All consumers of a block are
answered from one pass through that block, whose results wait in temporary files, not in memory.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Hooks, StopForward, first_tensor, hooks, run_until_stopped
from optin_cli.model.replay import Prefixes, store
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group


def at_residual_sum(hook: Hooks, model: nn.Module, group: Group, arrive: Callable[[torch.Tensor], None]) -> None:
    """Call `arrive` with every sum of a consumer's output and residual stream; without one, with its own output."""

    def on_output(_module: nn.Module, _arguments: Any, output: Any) -> None:
        arrive(first_tensor(output))

    if not group.residual:
        hook.after(model.get_submodule(group.consumer), on_output)
    elif group.residual_sum is not None:
        hook.before(model.get_submodule(group.residual_sum), lambda _module, arguments: arrive(arguments[0]))
    else:  # before what merges tokens behind a block
        hook.after(model.get_submodule(group.block_path), on_output, prepend=True)


class Targets(Prefixes):
    """The original's residual sums of the current block, for every batch."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Sequence[Batch],
        calls: Mapping[Group, int],
        *,
        chain: bool = False,
        numbers: Sequence[int] | None = None,
        folder: Path | None = None,
        start: str | None = None,
    ) -> None:
        """Args: calls: how often each consumer runs, by group in order of execution. Others: as of `Prefixes`."""
        super().__init__(model, structure, batches, chain=chain, numbers=numbers, folder=folder, start=start)
        self._calls = calls
        self._block: str | None = None

    def advance(self, group: Group) -> None:
        """Run through the block of `group`; earlier blocks cannot be asked for any more."""
        if group.block == self._block:
            return
        super().advance(group)
        self._block = group.block
        members = {other: n for other, n in self._calls.items() if other.block == group.block}
        for number in self._numbers:
            sums, output = self._through(number, self.batches[number], group.block_path, members)
            for member, tensors in sums.items():
                store(tensors, self._sums_file(number, member))
            store(output, self._file(number, self._depth))
        self._stored = self._depth + 1

    def sums(self, number: int, group: Group) -> list[torch.Tensor]:
        """The sums of one batch, one a call of the consumer, as the model has them."""
        found: list[torch.Tensor] = torch.load(self._sums_file(number, group), weights_only=True)
        return found

    def _through(
        self, number: int, batch: Batch, path: str, members: Mapping[Group, int]
    ) -> tuple[dict[Group, list[torch.Tensor]], Any]:
        """(sums by group, output of the block's first run) of a pass that stops behind the block."""
        sums: dict[Group, list[torch.Tensor]] = {group: [] for group in members}
        outputs: list[Any] = []
        block = self.model.get_submodule(path)

        def stop_if_done() -> None:
            if outputs and all(len(sums[group]) >= calls for group, calls in members.items()):
                raise StopForward

        def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output)
            stop_if_done()

        def arrive(group: Group, total: torch.Tensor) -> None:
            # A copy, because the next module may work in place.
            sums[group].append(self.structure.positions(block).spread(total.clone()))
            stop_if_done()

        with hooks() as hook, self.skipping(number):
            for group in members:
                at_residual_sum(hook, self.model, group, functools.partial(arrive, group))
            hook.after(block, collect, prepend=True)
            run_until_stopped(self.model, batch.inputs)
        return sums, outputs[0]

    def _sums_file(self, number: int, group: Group) -> Path:
        return self._file(number, list(self._calls).index(group) - len(self._calls))
