"""Measure MACs and parameters of a model, and of one unit of each group.

MACs are the multiply-accumulates of matrix products, convolutions and attention, counted by fvcore (which
counts one per multiply-accumulate). Element-wise work and normalisation are not MACs and count nothing.

A unit's cost is measured, not assumed: all MACs of the modules whose weights the group slices, and the products inside
its mixer (scores and values of attention), each less those of modules inside it, grow in proportion to its units.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import GroupCost, SharedCost
from optin_cli.model.arithmetic import ordering
from optin_cli.model.forward import call_model, hooks
from optin_cli.model.lookup import tensor_at
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group, Slice

# fvcore runs torch.jit at import and at every use, which newer torch calls deprecated.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


Handler = Callable[[list[Any], list[Any]], int]
NORMALISATIONS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "native_layer_norm")
RESAMPLING = ("upsample_nearest2d", "upsample_bilinear2d", "adaptive_avg_pool2d")
SAMPLE_MACS = 5
"""MACs of a value that deformable attention samples: its four neighbours and its attention weight (Deformable DETR,
arXiv 2010.04159, appendix A.1)."""


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """MACs of scaled-dot-product attention: scores (rows x heads x T x S x D) and values (… x T x S x V)."""
    query, key, value = (_shape(i) for i in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def matmul_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """MACs of any matrix product: every output element sums over the inner dimension."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def einsum_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """MACs of an einsum of two tensors, which multiplies once for every setting of its indices."""
    terms = inputs[0].toIValue().replace(" ", "").partition("->")[0].split(",")
    tensors = inputs[1].node().inputs()
    sizes = {
        index: n
        for term, tensor in zip(terms, tensors, strict=True)
        for index, n in zip(term, _shape(tensor), strict=True)
    }
    return math.prod(sizes.values())


HANDLERS: Mapping[str, Handler] = {
    "aten::scaled_dot_product_attention": attention_macs,
    "aten::matmul": matmul_macs,
    "aten::mm": matmul_macs,
    "aten::bmm": matmul_macs,
    "aten::linear": matmul_macs,
    "aten::einsum": einsum_macs,
    "aten::grid_sampler": lambda _inputs, outputs: SAMPLE_MACS * math.prod(_shape(outputs[0])),
    "aten::addmm": lambda inputs, outputs: matmul_macs(inputs[1:], outputs),
    **{f"aten::{name}": lambda _inputs, _outputs: 0 for name in (*NORMALISATIONS, *RESAMPLING)},
}


class _Traceable(nn.Module):
    """Tracing takes positional tensors and wants tensors back; models take keywords and return records.

    A trace leaves out what no returned tensor depends on, such as heads that serve training alone. A model computes it
    all the same, so a number of every module's output is returned too.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        used: list[torch.Tensor] = []

        def use(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, torch.Tensor):
                used.append(first.sum())

        with hooks() as hook:
            for module in self.model.modules():
                hook.after(module, use)
            output = call_model(self.model, dict(zip(self.names, tensors, strict=True)))
        return (*(v for v in output.values() if isinstance(v, torch.Tensor)), *used)


def count_macs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, float]]:
    """Count MACs of one forward pass, every run of a module: in all, and by module path with everything inside it.

    A model on the meta device is counted there, without its weights.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        model = copy.deepcopy(model).to("meta")
        inputs = {name: tensor.to("meta") for name, tensor in inputs.items()}
    analysis = FlopCountAnalysis(_Traceable(model, tuple(inputs)), tuple(inputs.values()))
    analysis.set_op_handle(**HANDLERS)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    noisy = logging.getLogger("fvcore.nn.jit_analysis")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        # In a fixed order torch computes some operations by others, which cannot be traced on a GPU.
        with warnings.catch_warnings(), torch.no_grad(), ordering(False):
            warnings.simplefilter("ignore")
            total = int(analysis.total())
            by_module = {k.removeprefix("model").lstrip("."): float(v) for k, v in analysis.by_module().items() if k}
    finally:
        noisy.setLevel(level)
    return total, by_module


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def count_totals(model: nn.Module, inputs: Mapping[str, torch.Tensor], weight_bytes: int) -> Totals:
    """Cost of a whole model, whose stored weights have that size, for one input."""
    return Totals(macs=count_macs(model, inputs)[0], parameters=count_parameters(model), bytes=weight_bytes)


def unit_parameters(model: nn.Module, group: Group) -> int:
    """Parameters that one unit of a group holds."""
    tensors = ((piece, tensor_at(model, piece.parameter)) for piece in group.slices)
    return sum(
        tensor.numel() // tensor.shape[piece.axis] * piece.unit_width
        for piece, tensor in tensors
        if isinstance(tensor, nn.Parameter)
    )


def unit_macs(model: nn.Module, group: Group, by_module: Mapping[str, float]) -> float:
    """MACs that one unit of a group costs, from the measured MACs of each module."""
    places = {s.parameter.rpartition(".")[0] for s in group.slices} | ({group.mixer} if group.mixer else set())
    total = 0.0
    for place in sorted(places.difference(group.constant)):
        children = (f"{place}.{name}" for name, _ in model.get_submodule(place).named_children())
        total += by_module.get(place, 0.0) - sum(by_module.get(child, 0.0) for child in children)
    return total / group.units


def shared_costs(
    model: nn.Module, groups: Sequence[Group], by_module: Mapping[str, float]
) -> dict[str, dict[str, SharedCost]]:
    """What units of two groups cost together in weights sliced by both: by the earlier group, by the later one."""
    costs: dict[str, dict[str, SharedCost]] = {group.name: {} for group in groups}
    counted: set[tuple[str, str, str]] = set()
    seen: dict[str, tuple[Group, Slice]] = {}
    for group in groups:
        for piece in group.slices:
            if piece.parameter not in seen:
                seen[piece.parameter] = group, piece
                continue
            other, theirs = seen[piece.parameter]
            tensor = tensor_at(model, piece.parameter)
            columns = tensor.numel() // (tensor.shape[piece.axis] * tensor.shape[theirs.axis])
            before = costs[other.name].get(group.name, SharedCost(macs=0.0, parameters=0))
            module = piece.parameter.rpartition(".")[0]
            free = module in (*group.constant, *other.constant) or (other.name, group.name, module) in counted
            counted.add((other.name, group.name, module))
            macs = 0.0 if free else by_module.get(module, 0.0)
            costs[other.name][group.name] = SharedCost(
                macs=before.macs + macs / (group.units * other.units),
                parameters=before.parameters + columns * piece.unit_width * theirs.unit_width,
            )
    return costs


def group_costs(model: nn.Module, groups: Sequence[Group], by_module: Mapping[str, float]) -> dict[str, GroupCost]:
    """Cost of a unit of each group, from the measured MACs of each module."""
    shared = shared_costs(model, groups, by_module)
    return {
        group.name: GroupCost(
            kind=group.kind,
            block=group.block,
            units=group.units,
            unit_width=group.unit_width,
            unit_macs=unit_macs(model, group, by_module),
            unit_parameters=unit_parameters(model, group),
            least=group.least,
            shared=shared[group.name],
            config=group.config.counts() if group.config else None,
        )
        for group in groups
    }


def measure_costs(
    model: nn.Module, structure: Structure, inputs: Mapping[str, torch.Tensor], weight_bytes: int
) -> tuple[Totals, dict[str, GroupCost]]:
    """Cost of the whole model, whose stored weights have that size, and of each group's units for one input."""
    total, by_module = count_macs(model, inputs)
    groups = {name: cost for kind in structure.kinds for name, cost in kind.costs(model, by_module).items()}
    return Totals(macs=total, parameters=count_parameters(model), bytes=weight_bytes), groups
