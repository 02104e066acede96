"""Weights of linear layers and convolutions, whichever way a library lays them out."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optin_cli.model.modeling_optin import BiasAlone


def weight_by_outputs(layer: nn.Module) -> torch.Tensor:
    """A layer's weight (outputs, inputs, ...): the parameter itself or a view of it, so that writing changes it.

    The Conv1D of GPT-2 is a linear layer that holds (inputs, outputs).
    """
    weight = layer.get_parameter("weight")
    if isinstance(layer, BiasAlone):
        return weight.reshape(layer.outputs, 0)
    return weight.T if isinstance(layer, Conv1D) else weight
