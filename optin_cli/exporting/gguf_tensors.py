"""A decoder's weights as llama.cpp names, orders and counts them.

Layers of different widths are written for its architecture `deci`, whose graph adds what a layer's attention gives
only if the layer also has an FFN, reads the size of heads from the first layer, and selects the rows of the last
tokens in the last layer's FFN. Where a model lacks what the graph needs there, a part with zero weights stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optin_cli.exporting.gguf_families import Rotary
from optin_cli.exporting.registry import ExportError

LEAST_NEURONS = 32
"""Width of an FFN of zeros: the block of llama.cpp's 8-bit format."""
ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm")
FFN = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
TURNED = ("attn_q", "attn_k")
"""Parts of a layer, by llama.cpp's names."""
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Heads that ask, key-value heads, and neurons of a layer."""

    heads: int
    groups: int
    neurons: int


def named(state: Mapping[str, torch.Tensor], architecture: str, layers: int) -> Tensors:
    """The weights of a state dict by llama.cpp's names; tied and empty ones are left out.

    Raises ExportError: the architecture has no place for one of them.
    """
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], layers)
    found: Tensors = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        if tensor.numel() == 0 or tensor.data_ptr() in stored:
            continue
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ExportError(
                f"llama.cpp's architecture {architecture} has no place for the weight {name} "
                f"({' x '.join(map(str, tensor.shape))}).",
                hint="Export the model before it was cut, or pass --to onnx.",
            )
        stored.add(tensor.data_ptr())
        found[place] = tensor.detach().to(torch.float32)
    return found


def layer_sizes(tensors: Mapping[str, torch.Tensor], layers: int, head_dim: int) -> list[Layer]:
    """What each layer has (ExportError if its heads are narrower than `head_dim`)."""

    def rows(number: int, part: str) -> int:
        tensor = tensors.get(place(number, part))
        return 0 if tensor is None else tensor.shape[0]

    found = []
    for number in range(layers):
        widths = [rows(number, part) for part in ("attn_q", "attn_k", "attn_v")]
        if any(width % head_dim for width in widths) or widths[1] != widths[2]:
            raise ExportError(
                f"Layer {number} has {widths[0]}, {widths[1]} and {widths[2]} rows of queries, keys and values, which "
                f"are not whole heads of {head_dim} dimensions, as llama.cpp has them.",
                hint="Search with units of heads and neurons only (--units heads,neurons), or pass --to onnx.",
            )
        found.append(Layer(widths[0] // head_dim, widths[1] // head_dim, rows(number, "ffn_up")))
    return found


def place(layer: int, part: str, kind: str = "weight") -> str:
    """Name of a weight of a layer."""
    return f"blk.{layer}.{part}.{kind}"


def completed(tensors: Mapping[str, torch.Tensor], sizes: list[Layer], head_dim: int) -> tuple[Tensors, list[Layer]]:
    """Weights and sizes with zeros where the graph of `deci` needs a part that a layer lacks, without unused norms."""
    filled, found = dict(tensors), []
    hidden = tensors["token_embd.weight"].shape[1]
    for number, size in enumerate(sizes):
        heads, groups, neurons = size.heads, size.groups, size.neurons
        if heads == 0 and (number == 0 or place(number, "attn_output", "bias") in tensors):
            heads = groups = 1
            filled |= _zeros(number, ("attn_q", "attn_k", "attn_v"), (head_dim, hidden))
            filled |= _zeros(number, ("attn_output",), (hidden, head_dim))
        alone = heads > 0 or number in (0, len(sizes) - 1) or place(number, "ffn_down", "bias") in tensors
        if neurons == 0 and alone:
            neurons = LEAST_NEURONS
            filled |= _zeros(number, ("ffn_gate", "ffn_up"), (neurons, hidden))
            filled |= _zeros(number, ("ffn_down",), (hidden, neurons))
        for kept, parts in ((heads, ATTENTION), (neurons, FFN)):
            if kept:
                filled.setdefault(place(number, parts[0]), torch.ones(hidden))
            else:
                for part in parts:
                    filled.pop(place(number, part), None)
                    filled.pop(place(number, part, "bias"), None)
        found.append(Layer(heads, groups, neurons))
    return filled, found


def _zeros(layer: int, parts: tuple[str, ...], shape: tuple[int, int]) -> Tensors:
    return {place(layer, part): torch.zeros(shape) for part in parts}


def turned(tensors: Mapping[str, torch.Tensor], head_dim: int, rotary: Rotary) -> Tensors:
    """Queries and keys with the dimensions of each head in the order in which llama.cpp turns them.

    Transformers turns dimension n with n + head_dim / 2; where 2n and 2n + 1 turn together, the two halves alternate.
    """
    if rotary == "halves":
        return dict(tensors)

    def alternating(tensor: torch.Tensor) -> torch.Tensor:
        halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    return {name: alternating(tensor) if name.split(".")[-2] in TURNED else tensor for name, tensor in tensors.items()}


def shifted(tensors: Mapping[str, torch.Tensor], offset: float) -> Tensors:
    """Weights of norms plus what the model's own code adds to them."""
    return {name: t + offset if name.endswith("_norm.weight") else t for name, t in tensors.items()}
