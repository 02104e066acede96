"""A model, its structure and a batch in; the trajectory of that batch out: block outputs and final outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.architectures import OutputRule
from optin_cli.data import Batch
from optin_cli.structure import Structure


@dataclass(frozen=True)
class Trajectory:
    """What one forward pass went through.

    features: block outputs in order of execution, each (rows, tokens, width); a block that runs several
    times (shared weights) appears as often.
    outputs: final outputs in the order of the structure, each (rows, ..., classes); padding positions of
    distributions over tokens are -inf.
    """

    features: list[torch.Tensor]
    outputs: list[torch.Tensor]


def call_model(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Outputs of a model by name; those of one that returns a tensor alone are its `logits`."""
    output = model(**inputs)
    return {"logits": output} if isinstance(output, torch.Tensor) else output


def first_tensor(output: object) -> torch.Tensor:
    """The hidden states in what a block returned: the tensor itself or the first item of a tuple."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"a block returned {type(found).__name__}, expected a tensor")
    return found


@contextlib.contextmanager
def recording(model: nn.Module, structure: Structure) -> Iterator[list[torch.Tensor]]:
    """Collect every block output, in order of execution, while the context lasts."""
    features: list[torch.Tensor] = []

    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        features.append(first_tensor(output))

    handles = [model.get_submodule(block.path).register_forward_hook(record) for block in structure.blocks]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def final_outputs(raw: Mapping[str, torch.Tensor], rules: tuple[OutputRule, ...], batch: Batch) -> list[torch.Tensor]:
    """Pick the compared outputs; distributions over tokens get -inf at padding."""
    outputs = []
    for rule in rules:
        output = raw[rule.name]
        if rule.over == "tokens":
            output = output.masked_fill(~batch.mask_for(output), -torch.inf)
        outputs.append(output)
    return outputs


def per_token(output: torch.Tensor, rule: OutputRule) -> bool:
    """Whether an output holds one distribution a token: (rows, tokens, classes)."""
    return rule.over == "classes" and output.dim() == 3


def observe(model: nn.Module, structure: Structure, batch: Batch) -> Trajectory:
    """One forward pass, recorded. Gradients are kept when the caller has them enabled."""
    with recording(model, structure) as features:
        raw = call_model(model, batch.inputs)
    return Trajectory(features, final_outputs(raw, structure.outputs, batch))
