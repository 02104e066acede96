"""Refit of image models of every kind."""

import copy

import pytest
import torch
from helpers.models import build, random_kept, structure_of
from helpers.refits import REFITTED, image_batch

from optin_cli.model.cut import PrunedModel, cut
from optin_cli.refit import batch_norm as batch_norms
from optin_cli.refit import design_matrix as consumers
from optin_cli.refit import refit


@pytest.mark.parametrize(("family", "share"), REFITTED.items())
def test_the_residual_stream_comes_closer(family, share):
    original = build(family)
    structure = structure_of(original)
    kept = random_kept(structure, 1, share=share)
    model = copy.deepcopy(original)
    cut(model, structure, kept)
    before = copy.deepcopy(model.state_dict())
    batches = [image_batch(original, seed) for seed in range(4)]
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
    batches = [image_batch(original, seed) for seed in range(2)]
    report = refit.refit_model(PrunedModel(original, model, structure, kept), batches)
    report.pop(refit.BATCH_NORM)
    assert all(not r.kept and "columns" in r.reason and r.before == r.after > 0 for r in report.values())
