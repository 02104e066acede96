"""What the pass through a block for one of its consumers spares the passes after it.

Nothing that a block computes before a consumer changes any more once that is solved. So the pass for the next consumer
takes what the solved one puts out from its input, in place of all that leads to it, such as attention; and behind the
last, the block's output is the residual stream plus what that consumer puts out. Both are the same numbers that the
whole block would compute. Inputs and residual streams wait in memory, as many as MOST allows.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optin_cli.model.forward import first_tensor
from optin_cli.model.units import Group

MOST = 2**30
"""Bytes that are held at once. Batches that come after them are computed again."""


@contextlib.contextmanager
def standing_in(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let a function compute what a module does, while the context lasts."""
    held = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if held is not None:
            module.forward = held


@dataclass(frozen=True)
class Passed:
    """What one pass showed of a linear consumer.

    x: its input. around: the outermost module in the block that returns the consumer's output and nothing else, by
    path, with how many times None it returns beside it; None where no module does. stream: the block's output less that
    of the consumer, where its output is their sum.
    """

    x: torch.Tensor
    around: tuple[str, int | None] | None
    stream: torch.Tensor | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.x.nbytes + (0 if self.stream is None else self.stream.nbytes)


def returned_beside(output: Any) -> int | None:
    """How many times None a module returned beside a tensor, -1 for something else; None if it was the tensor alone."""
    if isinstance(output, torch.Tensor):
        return None
    rest = output[1:] if isinstance(output, tuple) else (output,)
    return len(rest) if all(item is None for item in rest) else -1


@dataclass
class Sparing:
    """What passes through the current block have shown so far.

    model: whose blocks form a chain. passed: by consumer's path, then by number of the batch.
    """

    model: nn.Module
    block: str | None = None
    passed: dict[str, dict[int, Passed]] = field(default_factory=dict)
    size: int = 0

    def enter(self, block: str) -> None:
        """Go on to a block, and forget those before it."""
        if block != self.block:
            self.block, self.size = block, 0
            self.passed.clear()

    def note(self, number: int, group: Group, passed: Passed) -> None:
        """Hold what a pass of batch `number` showed of a group's consumer, if there is room."""
        earlier = self.passed.setdefault(group.consumer, {})
        if self.size + passed.size <= MOST and number not in earlier:
            earlier[number] = passed
            self.size += passed.size

    @contextlib.contextmanager
    def skipping(self, number: int, group: Group) -> Iterator[None]:
        """Let what the consumers before a group's put out come from their inputs, in passes of batch `number`."""
        with contextlib.ExitStack() as stack:
            for path, batches in self.passed.items():
                passed = batches.get(number)
                if passed is None or passed.around is None or path == group.consumer:
                    continue
                around, beside = passed.around
                if group.consumer.startswith(f"{around}."):
                    continue
                consumer = self.model.get_submodule(path)

                def forward(
                    *_: Any, consumer: nn.Module = consumer, x: torch.Tensor = passed.x, beside: Any = beside, **__: Any
                ) -> Any:
                    output = consumer(x)
                    return output if beside is None else (output, *[None] * beside)

                stack.enter_context(standing_in(self.model.get_submodule(around), forward))
            yield

    @torch.no_grad()
    def output(self, block: str, number: int) -> torch.Tensor | None:
        """A block's output for batch `number`, once all its consumers are solved; None if it is not known."""
        for path, batches in self.passed.items() if block == self.block else ():
            passed = batches.get(number)
            if passed is not None and passed.stream is not None:
                output: torch.Tensor = passed.stream + self.model.get_submodule(path)(passed.x)
                return output
        return None


@dataclass
class Around:
    """Finds the outermost module that returns a consumer's output: told of what modules around it return, inside out.

    output: of the consumer.
    """

    output: torch.Tensor | None = None
    found: tuple[str, int | None] | None = None

    def see(self, path: str, output: Any) -> None:
        """Note what a module returned."""
        if self.output is None or not isinstance(output, (torch.Tensor, tuple)):
            return
        beside = returned_beside(output)
        if first_tensor(output) is self.output and beside != -1:
            self.found = path, beside


def modules_around(group: Group) -> list[str]:
    """Paths of the modules between a group's block and its consumer, from the inside out."""
    found = []
    path = group.consumer.rpartition(".")[0]
    while path.startswith(f"{group.block_path}."):
        found.append(path)
        path = path.rpartition(".")[0]
    return found


def last_in_block(calls: Mapping[Group, int], group: Group) -> bool:
    """Whether no other consumer of the block runs after a group's."""
    return [other for other in calls if other.block == group.block][-1] is group
