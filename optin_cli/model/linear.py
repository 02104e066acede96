"""Linear layers, whichever way a library lays out their weights."""

from typing import TypeGuard

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optin_cli.model.modeling_optin import BiasAlone


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | BiasAlone]:
    """Whether a module is a linear layer; the Conv1D of GPT-2, which has the same attributes, counts as one."""
    return isinstance(module, nn.Linear | BiasAlone | Conv1D)


def weight_by_outputs(layer: nn.Module) -> torch.Tensor:
    """Weight of a linear layer or convolution (outputs, inputs, ...): itself or a view, so that writing changes it.

    A Conv1D holds (inputs, outputs).
    """
    weight = layer.get_parameter("weight")
    if isinstance(layer, BiasAlone):
        return weight.reshape(layer.outputs, 0)
    return weight.T if isinstance(layer, Conv1D) else weight
