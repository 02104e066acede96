"""The output that brings the residual stream to its target."""

import copy

import pytest
import torch
from helpers.models import IMAGES, build, make_batch, structure_of
from helpers.refits import REFITTED, image_batch

from optin_cli.model.cut import PrunedModel, cut
from optin_cli.refit import residual_stream as residuals
from optin_cli.refit.design_matrix import weight_matrix


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


@pytest.mark.parametrize("family", ["bert", "albert", "swin", "mobilenet_v2", "resnet"])
def test_own_rows_are_kept_columns_and_outputs_of_the_original(family):
    """Its weights give the outputs of the kept columns and of the removed ones, as cut and as a whole."""
    model = build(family)
    structure = structure_of(model)
    group = structure.groups[0]
    batch = image_batch(model) if family in IMAGES else make_batch(8, 6, padding=2)
    outputs = []
    for kept in (range(0, group.units, 2), range(1, group.units, 2)):
        mask, pruned = {group.name: list(kept)}, copy.deepcopy(model)
        cut(pruned, structure, mask)
        consumer = pruned.get_submodule(group.consumer)
        with residuals.refitting(PrunedModel(model, pruned, structure, mask), [batch]) as run:
            run.advance(group)
            rows = [*residuals.own_rows(run, group, range(1))]
        assert len(rows) == run.calls[group]
        outputs.append([(x.double() @ weight_matrix(consumer), y.double(), taken) for x, y, taken, _ in rows])
    for (some, y, taken), (rest, _, _) in zip(*outputs, strict=True):
        both = some + rest if consumer.bias is None else some + rest - consumer.bias.double()
        torch.testing.assert_close(both[taken], y[taken], rtol=1e-4, atol=1e-5)
