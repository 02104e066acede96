"""Verify that a saved folder computes what the model in memory computes: probes and tolerances."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from optin_cli.errors import CertificateError
from optin_cli.model.forward import call_model

RELATIVE_TOLERANCE = 1e-4
"""Largest accepted difference, as a share of the largest output."""


def run_probe(model: nn.Module, inputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Outputs by name, on the CPU, with padding positions of per-token outputs left as they are."""
    device = next(model.parameters()).device
    with torch.no_grad():
        raw = call_model(model, {name: tensor.to(device) for name, tensor in inputs.items()})
    return {name: raw[name].cpu() for name in names}


def largest_difference(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over all outputs; NaN where one is."""
    return float(torch.stack([(mine[name] - theirs[name]).abs().max() for name in mine]).max())


def tolerance_for(outputs: Mapping[str, torch.Tensor]) -> float:
    """Largest accepted difference for outputs of that size."""
    return RELATIVE_TOLERANCE * max(1.0, *(float(o.abs().max()) for o in outputs.values()))


DEFECT = "This is a defect of the architecture description or of optin; please report it."


def require_equal(what: str, difference: float, tolerance: float, hint: str = DEFECT) -> None:
    """Raise CertificateError when outputs differ by more than the tolerance (or are not numbers)."""
    if math.isnan(difference):
        raise CertificateError(f"{what}: outputs are not numbers. Nothing was written.", hint=hint)
    if not difference <= tolerance:
        raise CertificateError(
            f"{what}: outputs differ by {difference:.3g}, more than the tolerance of {tolerance:.3g}. "
            "Nothing was written.",
            hint=hint,
        )
