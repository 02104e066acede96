"""Design matrices of consumers: the rows that the weights of a linear layer or a convolution multiply.

A convolution is linear in its unfolded input: each position of its output reads one patch.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from optin_cli.data.batch import keyed_generator
from optin_cli.model.linear import is_linear, weight_by_outputs
from optin_cli.model.modeling_optin import BiasAlone

Consumer = nn.Linear | nn.Conv2d | BiasAlone
POSITIONS = 512
"""Most positions of a sample that are taken; fewer by a kernel's area, since neighbouring patches overlap."""
WIDEST = 16384
"""Most columns of which a Gram matrix is kept (2 GiB in float64)."""


def is_consumer(module: nn.Module) -> TypeGuard[Consumer]:
    """Whether a module is one of those that can be re-solved."""
    return isinstance(module, nn.Conv2d) or is_linear(module)


def nothing_left(consumer: Consumer, *, biased: bool = False) -> str | None:
    """Why a pruned consumer has no weight to solve for; None if it has one.

    Args:
        biased: it is about to get a bias.
    """
    if weight_by_outputs(consumer)[0].numel() or biased or consumer.bias is not None:
        return None
    return "no input column is left and it has no bias"


def why_not(consumer: nn.Module, *, biased: bool = False) -> str | None:
    """Why a consumer cannot be re-solved by least squares; None if it can.

    Args:
        biased: it is about to get a bias.
    """
    if not is_consumer(consumer):
        return f"a {type(consumer).__name__}"
    if isinstance(consumer, nn.Conv2d):
        if consumer.groups > 1:
            return "a grouped convolution"
        if isinstance(consumer.padding, str) or consumer.padding_mode != "zeros":
            return "a convolution padded with something else than a fixed border of zeros"
    width = weight_by_outputs(consumer)[0].numel()
    if width > WIDEST:
        return f"its {width} input columns are more than {WIDEST}"
    return nothing_left(consumer, biased=biased)


def weight_matrix(consumer: Consumer) -> torch.Tensor:
    """Weights as (columns, outputs) float64, with a last row of biases if it has them."""
    weight = weight_by_outputs(consumer).detach().double().flatten(1).T
    return weight if consumer.bias is None else torch.cat([weight, consumer.bias.detach().double()[None]])


@torch.no_grad()
def set_weight_matrix(consumer: Consumer, matrix: torch.Tensor) -> None:
    """Take over weights and biases laid out as `weight_matrix` gives them."""
    weight = weight_by_outputs(consumer)
    matrix = matrix.to(weight.dtype)
    weight.copy_(matrix[: weight[0].numel()].T.reshape(weight.shape))
    if consumer.bias is not None:
        consumer.bias.copy_(matrix[-1])


def output_rows(output: torch.Tensor, axis: int, rows: int) -> torch.Tensor:
    """A consumer's output, its columns on `axis`, as (rows, positions, columns)."""
    moved = output.movedim(axis, -1)
    return moved.reshape(rows, moved.shape[:-1].numel() // rows, moved.shape[-1])


def choose_positions(consumer: nn.Module, keys: Sequence[str], positions: int) -> torch.Tensor | None:
    """Which positions of each sample are taken, (samples, chosen) ascending, drawn by its key; None for all."""
    area = consumer.weight[0, 0].numel() if isinstance(consumer, nn.Conv2d) else 1
    wanted = max(POSITIONS // area, 1)
    if positions <= wanted:
        return None
    drawn = []
    for key in keys:
        order = torch.randperm(positions, generator=keyed_generator(key))
        drawn.append(order[:wanted].sort().values)
    return torch.stack(drawn)


def take(rows: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """(rows, positions, columns) at the chosen positions."""
    if positions is None:
        return rows
    return rows.gather(1, positions.to(rows.device)[:, :, None].expand(-1, -1, rows.shape[-1]))


def input_rows(consumer: Consumer, x: torch.Tensor, rows: int, positions: torch.Tensor | None) -> torch.Tensor:
    """What weights and bias multiply: `input_columns`, with a last column of ones if there is a bias."""
    found = input_columns(consumer, x, rows, positions)
    if consumer.bias is None:
        return found
    return torch.cat([found, found.new_ones(*found.shape[:-1], 1)], dim=-1)


def input_columns(consumer: Consumer, x: torch.Tensor, rows: int, positions: torch.Tensor | None) -> torch.Tensor:
    """What the weights multiply: (rows, chosen, columns).

    Args:
        x: the consumer's input, (rows or rows x windows, ..., columns), or (rows, channels, height, width).
        positions: from `choose_positions`.
    """
    if isinstance(consumer, nn.Conv2d):
        return patches(consumer, x, positions)
    return take(output_rows(x, -1, rows), positions)


def patches(consumer: nn.Conv2d, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Unfolded patches at positions of the output grid: (rows, chosen, channels x kernel area), channel by channel."""
    (high, wide), (down, right), (tall, broad) = consumer.kernel_size, consumer.stride, consumer.dilation
    above, beside = int(consumer.padding[0]), int(consumer.padding[1])
    padded = F.pad(x, (beside, beside, above, above))
    height, width = padded.shape[-2:]
    columns = (width - broad * (wide - 1) - 1) // right + 1
    if positions is None:
        count = ((height - tall * (high - 1) - 1) // down + 1) * columns
        positions = torch.arange(count).expand(x.shape[0], -1)
    positions = positions.to(x.device)
    corners = positions // columns * down * width + positions % columns * right
    flat = padded.flatten(2)
    taken = [
        flat.gather(2, (corners + row * tall * width + column * broad)[:, None].expand(-1, x.shape[1], -1))
        for row in range(high)
        for column in range(wide)
    ]
    return torch.stack(taken, dim=-1).movedim(1, 2).flatten(2)
