"""Forward passes: hooks that are always removed, and trajectories (block outputs and final outputs)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from optin_cli.architectures.schema import Layout, OutputRule
from optin_cli.data.batch import Batch
from optin_cli.model.structure import Structure

PIXEL_GRID = 14
"""Longest side of a grid of pixels that is compared as it is: a vision transformer's at 224 pixels."""


class Hooks(contextlib.ExitStack):
    """Forward hooks of any modules, removed when the context ends. Options are those of torch's register functions."""

    def before(self, module: nn.Module, function: Callable[..., Any], **options: bool) -> None:
        """Call `function` before the forward of a module."""
        self.callback(module.register_forward_pre_hook(function, **options).remove)

    def after(self, module: nn.Module, function: Callable[..., Any], **options: bool) -> None:
        """Call `function` after the forward of a module."""
        self.callback(module.register_forward_hook(function, **options).remove)


def hooks() -> Hooks:
    """Register hooks within a context: `with hooks() as hook: hook.after(module, function)`."""
    return Hooks()


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a hook when the rest of a forward pass is not needed."""


@dataclass(frozen=True)
class Trajectory:
    """What one forward pass went through.

    features: block outputs in order of execution, each (rows, tokens, width), tokens being pixels
    in images; a block that runs several
    times (shared weights) appears as often.
    outputs: final outputs in the order of the structure, each (rows, classes) or (rows, positions, classes), or the
    (rows, entries) of independent distributions; padding positions of distributions over tokens are -inf.
    """

    features: list[torch.Tensor]
    outputs: list[torch.Tensor]


def single(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32, unless they are in that or a wider type."""
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def call_model(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Outputs of a model by name; those of one that returns a tensor alone are its `logits`.

    Pixels are given in the model's type.
    """
    first = next(model.parameters(), None)
    if first is not None and first.dtype == torch.bfloat16:
        inputs = {
            name: tensor.to(first.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
        }
    output = model(**inputs)
    return {"logits": output} if isinstance(output, torch.Tensor) else output


@torch.no_grad()
def run_until_stopped(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run a model for its hooks alone, without gradients, until one of them raises StopForward."""
    with contextlib.suppress(StopForward):
        call_model(model, inputs)


def first_tensor(output: object) -> torch.Tensor:
    """The hidden states in what a block returned: the tensor itself or the first item of a tuple."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"a block returned {type(found).__name__}, expected a tensor")
    return found


def as_tokens(output: torch.Tensor, layout: Layout, rows: int) -> torch.Tensor:
    """A block's output as (rows, tokens, width): pixels are tokens, of a grid pooled to PIXEL_GRID when larger.

    Args:
        output: of shape `layout`, where B may be rows x windows, the windows of a row one after another.
    """
    if layout == "BTC":
        return output.reshape(rows, -1, output.shape[-1])
    if layout == "TBC":
        return output.transpose(0, 1)
    if layout == "BHWC":
        output = output.movedim(-1, 1)
    height, width = output.shape[-2:]
    if max(height, width) > PIXEL_GRID:
        output = F.adaptive_avg_pool2d(output, (min(height, PIXEL_GRID), min(width, PIXEL_GRID)))
    return output.flatten(2).transpose(1, 2)


@contextlib.contextmanager
def recording(model: nn.Module, structure: Structure, rows: int) -> Iterator[list[torch.Tensor]]:
    """Collect every block output as tokens of `rows` samples, in order of execution, while the context lasts.

    Merged tokens count as often as there were: each has what it merged into.
    """
    features: list[torch.Tensor] = []
    with hooks() as hook:
        for block in structure.blocks:

            def record(module: nn.Module, _inputs: object, output: object, layout: Layout = block.layout) -> None:
                whole = structure.positions(module).spread(first_tensor(output))
                if layout == "BCHW":  # the activation behind a convolution may work in place
                    whole = whole.clone()
                features.append(single(as_tokens(whole, layout, rows)))

            hook.after(model.get_submodule(block.path), record)
        yield features


def embed_hidden(hidden: torch.Tensor, structure: Structure, batch: Batch) -> torch.Tensor:
    """Sentence embeddings of hidden states (rows, tokens, width): (rows, embedding)."""
    return structure.embedding(hidden, batch.mask_for(hidden), batch.prompt)


def final_outputs(raw: Mapping[str, torch.Tensor], rules: tuple[OutputRule, ...], batch: Batch) -> list[torch.Tensor]:
    """Pick the compared outputs, float32 at least, as in a `Trajectory`; those over tokens get -inf at padding."""
    outputs = []
    for rule in rules:
        output = single(raw[rule.name])
        if rule.over == "tokens":
            output = output.masked_fill(~batch.mask_for(output), -torch.inf)
        elif rule.over == "each-token":
            output = output.unsqueeze(-1)
        elif rule.over == "entries":
            output = output.flatten(1)
        elif (output := output.movedim(rule.axis, -1)).dim() > 3:
            output = output.flatten(1, -2)
        outputs.append(output)
    return outputs


def per_token(output: torch.Tensor, rule: OutputRule) -> bool:
    """Whether an output holds one distribution a token, query or pixel: (rows, positions, classes)."""
    return rule.over in ("classes", "each-token") and output.dim() == 3


def observe(model: nn.Module, structure: Structure, batch: Batch) -> Trajectory:
    """One forward pass, recorded. Gradients are kept when the caller has them enabled."""
    with recording(model, structure, batch.size) as features:
        raw = call_model(model, batch.inputs)
    return Trajectory(features, final_outputs(raw, structure.outputs, batch))
