"""Refit of image models: convolutions, residual streams that scale and rearrange, batch-norm statistics."""

import copy

import pytest
import torch
from helpers.models import IMAGES, build, make_pixels, random_kept, structure_of
from torch import nn
from torch.nn import functional as F

from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.refit import batch_norm as batch_norms
from optin_cli.refit import design_matrix as consumers
from optin_cli.refit import refit
from optin_cli.refit import residual_stream as residuals

FAMILIES = [
    family
    for family in ("timm-vit", "timm-swin", "swinv2", "timm-convnext", "mobilenet_v2", "timm-resnet", "timm-vgg-bn")
    if family in IMAGES
]


def batch_of(model, seed=0, rows=8):
    return Batch(make_pixels(model, rows, seed=seed), None, tuple(f"{seed}.{row}" for row in range(rows)))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (0, 1), "stride": (2, 1), "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
    ],
)
@pytest.mark.parametrize("positions", [4, 512])
def test_patches_are_what_a_convolution_multiplies(options, positions, monkeypatch):
    monkeypatch.setattr(consumers, "POSITIONS", positions)
    conv = nn.Conv2d(3, 5, **options)
    x = torch.randn(2, 3, 9, 8)
    out = consumers.output_rows(conv(x), 1, 2)
    chosen = consumers.choose_positions(conv, ("a", "b"), out.shape[1])
    rows = consumers.input_rows(conv, x, 2, chosen)
    torch.testing.assert_close(rows @ consumers.weight_matrix(conv).float(), consumers.take(out, chosen))


def test_positions_depend_on_the_sample_alone():
    conv = nn.Conv2d(3, 5, 1)
    both, swapped = (consumers.choose_positions(conv, keys, 1000) for keys in (("a", "b"), ("b", "a")))
    assert torch.equal(both, swapped.flip(0)) and both.shape == (2, 512) and (both.diff(dim=1) > 0).all()
    assert not torch.equal(both[0], both[1])


def test_solutions_come_back_as_weights():
    for module in (nn.Conv2d(3, 5, (3, 2)), nn.Conv2d(3, 5, 1, bias=False), nn.Linear(4, 6)):
        state = copy.deepcopy(module.state_dict())
        matrix = consumers.weight_matrix(module)
        consumers.set_weight_matrix(module, matrix * 2)
        assert all(torch.allclose(tensor, 2 * state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padded"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padded"),
        (nn.Conv1d(4, 4, 3), "Conv1d"),
        (nn.Linear(consumers.WIDEST + 1, 1), "columns"),
        (nn.Conv2d(4, 4, 3), None),
        (nn.Linear(4, 4), None),
    ],
)
def test_what_cannot_be_solved(module, reason):
    found = consumers.why_not(module)
    assert (found is None) == (reason is None) and (reason is None or reason in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wanted_output_gives_the_wanted_sum(family):
    """Layer scale, batch norm, windows with shift and padding: with the output asked for, the sum is the target."""
    model = build(family)
    structure, batch = structure_of(model), batch_of(model, rows=2)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_comes_closer(family):
    original = build(family)
    structure = structure_of(original)
    kept = random_kept(structure, 1, share=0.7)
    model = copy.deepcopy(original)
    cut(model, structure, kept)
    before = copy.deepcopy(model.state_dict())
    batches = [batch_of(original, seed) for seed in range(4)]
    report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
    measured = report.pop(refit.BATCH_NORM, None)
    assert (measured is not None) == bool(batch_norms.batch_norms(model))
    assert set(report) == set(kept) and any(r.kept for r in report.values())
    assert all(r.after < r.before for r in report.values() if r.kept)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    solved = {structure.group(name).consumer for name, r in report.items() if r.kept}
    assert {name.rpartition(".")[0] for name in changed if "running" not in name and "num_" not in name} == solved
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in before.items()}
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_consumers_that_cannot_be_solved_are_recorded(monkeypatch):
    monkeypatch.setattr(consumers, "WIDEST", 4)
    original = build("timm-resnet")
    structure = structure_of(original)
    kept = random_kept(structure, 1)
    model = copy.deepcopy(original)
    cut(model, structure, kept)
    batches = [batch_of(original, seed) for seed in range(2)]
    report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
    report.pop(refit.BATCH_NORM)
    assert all(not r.kept and "columns" in r.reason and r.before == r.after > 0 for r in report.values())


def test_batch_norms_take_in_biases():
    conv, norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5).eval()
    norm.running_mean.normal_()
    x = torch.randn(2, 3, 4, 4)
    expected = norm(conv(x))
    batch_norms.fold_bias(conv, norm)
    assert conv.bias is None
    torch.testing.assert_close(norm(conv(x)), expected)


def test_norms_behind_consumers():
    model = build("timm-resnet")
    structure = structure_of(model)
    found = batch_norms.following_norms(model, structure, batch_of(model))
    assert found["layer1.0.conv2"] == "layer1.0.bn2" and found["layer3.0.conv3"] == "layer3.0.bn3"
    vit = build("timm-vit")
    assert batch_norms.following_norms(vit, structure_of(vit), batch_of(vit)) == {}


def test_statistics_are_measured_only_if_that_helps():
    original = build("timm-resnet")
    structure = structure_of(original)
    batches = [batch_of(original, seed, rows=16) for seed in range(3)]
    same = copy.deepcopy(original)
    found = batch_norms.reestimate(PrunedModel(original, same, structure, {}), batches)
    assert found.before == 0 and not found.kept
    assert all(
        torch.equal(a, b) for a, b in zip(same.state_dict().values(), original.state_dict().values(), strict=True)
    )
    measured = copy.deepcopy(original)
    for norm in batch_norms.batch_norms(measured).values():
        norm.running_var.mul_(50)
    found = batch_norms.reestimate(PrunedModel(original, measured, structure, {}), batches)
    assert found.kept == (found.after < found.before)
    assert not any(module.training for module in measured.modules())
    assert F.mse_loss(measured.bn1.running_var, original.bn1.running_var) > 0
