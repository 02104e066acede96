"""Batch-norm statistics: folded biases, norms behind consumers, re-estimation."""

import copy

import torch
from helpers.models import build, structure_of
from helpers.refits import image_batch
from torch import nn
from torch.nn import functional as F

from optin_cli.model.cut import PrunedModel
from optin_cli.refit import batch_norm as batch_norms


def test_batch_norms_take_in_biases():
    conv, norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5).eval()
    norm.running_mean.normal_()
    x = torch.randn(2, 3, 4, 4)
    expected = norm(conv(x))
    batch_norms.fold_bias(conv, norm)
    assert conv.bias is None
    torch.testing.assert_close(norm(conv(x)), expected)


def test_norms_behind_consumers_are_found():
    model = build("timm-resnet")
    structure = structure_of(model)
    found = batch_norms.following_norms(model, structure, image_batch(model))
    assert found["layer1.0.conv2"] == "layer1.0.bn2" and found["layer3.0.conv3"] == "layer3.0.bn3"
    vit = build("timm-vit")
    assert batch_norms.following_norms(vit, structure_of(vit), image_batch(vit)) == {}


def test_statistics_are_measured_only_if_that_helps():
    original = build("timm-resnet")
    structure = structure_of(original)
    batches = [image_batch(original, seed, rows=16) for seed in range(3)]
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


def test_statistics_go_part_of_the_way(monkeypatch):
    original = build("timm-resnet")
    structure = structure_of(original)
    batches = [image_batch(original, seed, rows=16) for seed in range(3)]
    errors = {}
    for steps in ((0.0,), (0.0, 1.0), batch_norms.STEPS):
        monkeypatch.setattr(batch_norms, "STEPS", steps)
        shrunk = copy.deepcopy(original)
        for norm in batch_norms.batch_norms(shrunk).values():
            norm.running_var.mul_(4)
        found = batch_norms.reestimate(PrunedModel(original, shrunk, structure, {}), batches)
        errors[len(steps)] = found.after
        again = batch_norms.reestimate(PrunedModel(original, shrunk, structure, {}), batches)
        assert again.before == found.after  # what is reported is what the model computes
    assert errors[5] <= errors[2] <= errors[1]


def test_a_step_is_exact_at_both_ends():
    norm = nn.BatchNorm2d(4)
    stored, measured = ((torch.randn(4), torch.rand(4) + 0.1) for _ in range(2))
    for step, expected in ((0.0, stored), (1.0, measured)):
        batch_norms._set_statistics(norm, stored, measured, step)
        assert torch.equal(norm.running_mean, expected[0]) and torch.equal(norm.running_var, expected[1])
    batch_norms._set_statistics(norm, stored, measured, 0.5)
    between = torch.stack([stored[1], measured[1]])
    assert bool(((norm.running_var > between.amin(dim=0)) & (norm.running_var < between.amax(dim=0))).all())
