"""The output that brings the residual stream to its target."""

import pytest
import torch
from helpers.models import build, structure_of
from helpers.refits import REFITTED, image_batch

from optin_cli.refit import residual_stream as residuals


@pytest.mark.parametrize("family", REFITTED)
def test_the_wanted_output_gives_the_wanted_sum(family):
    """Layer scale, batch norm, windows with shift and padding: with the output asked for, the sum is the target."""
    model = build(family)
    structure, batch = structure_of(model), image_batch(model, rows=2)
    for group in structure.groups:
        (call,) = residuals.gather(model, structure, group, batch, 1)
        out, total = call.out, call.total
        target = total.detach() + torch.randn(total.shape, generator=torch.Generator().manual_seed(1))
        wanted, scale, _ = residuals.wanted_output(group, out, total, target)
        assert (scale != 0).any()
        handle = model.get_submodule(group.consumer).register_forward_hook(lambda *_, wanted=wanted: wanted)
        try:
            (again,) = residuals.gather(model, structure, group, batch, 1)
        finally:
            handle.remove()
        if group.residual:
            torch.testing.assert_close(again.total, target, rtol=1e-3, atol=1e-3 * float(target.abs().max()))
