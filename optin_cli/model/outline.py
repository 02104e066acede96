"""Run a model's blocks one at a time: what the rest of the model gives each of them, and the rest without the blocks.

The model's own forward says so while every block passes on the hidden states that it gets. That is all there is to know
if blocks form a chain: each reads the output of the one before, and nothing else that depends on a block. Others are
refused.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optin_cli.errors import ArchitectureError, headline
from optin_cli.model.forward import StopForward, call_model
from optin_cli.model.readout import run_hidden
from optin_cli.model.structure import Structure

HINT = "Pass --no-stream to run the model as a whole."
PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Call:
    """What a block is given beside hidden states: arguments after the first, and keywords."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that the block makes of others."""
        output = block(hidden, *self.arguments, **self.named)
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found


@dataclass(frozen=True)
class Outline:
    """The chain of a model's blocks. returns: items of the tuple that each returns, 0 for hidden states alone."""

    model: nn.Module
    blocks: tuple[str, ...]
    returns: tuple[int, ...]

    @torch.no_grad()
    def calls(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[Call]]:
        """Hidden states that the first block gets for a batch, and what each block is given beside them.

        Everything outside the blocks must have its weights.
        """
        entered: list[torch.Tensor] = []
        found: list[Call] = []

        def stand_in(place: int, hidden: torch.Tensor, call: Call) -> Any:
            entered.append(hidden)
            found.append(call)
            if place == len(self.blocks) - 1:
                raise StopForward
            return self._form(place, hidden)

        with _stubbed(self.model, self.blocks, stand_in), contextlib.suppress(StopForward):
            call_model(self.model, inputs)
        return entered[0], found

    @contextlib.contextmanager
    def ending_in(self, hidden: torch.Tensor) -> Iterator[None]:
        """Let passes of the model skip its blocks, as if the last one had put out these hidden states."""

        def stand_in(place: int, given: torch.Tensor, _call: Call) -> Any:
            return self._form(place, hidden if place == len(self.blocks) - 1 else given)

        with _stubbed(self.model, self.blocks, stand_in):
            yield

    def _form(self, place: int, hidden: torch.Tensor) -> Any:
        """Hidden states in the form in which a block returns them."""
        count = self.returns[place]
        return (hidden, *[None] * (count - 1)) if count else hidden


def find_outline(model: nn.Module, structure: Structure, inputs: Mapping[str, torch.Tensor]) -> Outline:
    """Find the chain of blocks in one pass, in which they compute on the meta device alone.

    Args:
        inputs: of a batch, any. Everything outside the blocks must have its weights.

    Raises ArchitectureError: the blocks are no chain, or are given or return what is not known here.
    """
    blocks = tuple(block.path for block in structure.blocks)
    returns: list[int] = []
    passed: list[torch.Tensor] = []

    def stand_in(place: int, hidden: torch.Tensor, call: Call) -> Any:
        path = blocks[place]
        if place != len(returns):
            raise _refusal(model, path, f"runs in place {len(returns) + 1} of {len(blocks)}")
        if passed and hidden is not passed[-1]:
            raise _refusal(model, path, "is not given what the block before puts out")
        if any(tensor.requires_grad for tensor in _tensors((call.arguments, call.named), path, model)):
            raise _refusal(model, path, "is given more that depends on the blocks before than hidden states")
        try:
            with torch.no_grad():
                arguments, named = (_mapped(given, _to_meta) for given in (call.arguments, dict(call.named)))
                output = _twin(model.get_submodule(path))(hidden.to("meta"), *arguments, **named)
        except (RuntimeError, NotImplementedError) as error:
            raise _refusal(model, path, f"does not run without its weights: {headline(error)}") from error
        first, *rest = output if isinstance(output, tuple) else (output,)
        if any(isinstance(item, torch.Tensor) for item in rest):
            raise _refusal(model, path, f"puts out {1 + len(rest)} tensors; expected hidden states alone")
        if not isinstance(first, torch.Tensor) or (first.shape, first.dtype) != (hidden.shape, hidden.dtype):
            raise _refusal(model, path, "puts out hidden states of another shape than those that it gets")
        returns.append(len(output) if isinstance(output, tuple) else 0)
        passed.append(hidden.detach().requires_grad_())
        return (passed[-1], *rest) if returns[-1] else passed[-1]

    with _stubbed(model, blocks, stand_in), torch.enable_grad():
        run_hidden(model, structure, {name: tensor[:1] for name, tensor in inputs.items()})
    if len(returns) < len(blocks):
        raise _refusal(model, blocks[len(returns)], "does not run")
    return Outline(model, blocks, tuple(returns))


@contextlib.contextmanager
def _stubbed(
    model: nn.Module, blocks: tuple[str, ...], stand_in: Callable[[int, torch.Tensor, Call], Any]
) -> Iterator[None]:
    """Let `stand_in` answer for every block: of its place, hidden states, and the rest of the call."""
    modules = [model.get_submodule(path) for path in blocks]
    originals = [module.__dict__.get("forward") for module in modules]

    def stub(place: int) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            if not arguments or not isinstance(arguments[0], torch.Tensor):
                raise _refusal(model, blocks[place], "is not given hidden states as its first argument")
            return stand_in(place, arguments[0], Call(arguments[1:], named))

        return forward

    try:
        for place, module in enumerate(modules):
            module.forward = stub(place)
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.__dict__.pop("forward", None)
            if original is not None:
                module.forward = original


def _twin(block: nn.Module) -> nn.Module:
    """A copy of a block without weights that computes by itself."""
    twin = copy.deepcopy(block).to("meta")
    twin.__dict__.pop("forward", None)
    return twin


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    return {name: _mapped(item, change) for name, item in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any, path: str, model: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors in arguments of a block (ArchitectureError if there is anything else than plain values)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, path, model)
    elif not isinstance(value, PLAIN):
        raise _refusal(model, path, f"is given a {type(value).__name__}; expected tensors and plain values")


def _refusal(model: nn.Module, path: str, what: str) -> ArchitectureError:
    return ArchitectureError(f"This {type(model).__name__} cannot be streamed: its block {path} {what}.", hint=HINT)
