"""Baseline criteria by hand: magnitude, random, Fisher, Wanda."""

import pytest
import torch
from helpers.models import (
    build,
    clone,
    make_batch,
    structure_of,
)

from optin_cli.errors import DataError
from optin_cli.model.cut import cut
from optin_cli.model.forward import hooks
from optin_cli.model.masking import gated
from optin_cli.scoring.baselines import fisher_batch, magnitude, random_importance, unit_energies


def test_magnitude_is_the_squared_norm_of_what_a_cut_removes():
    model = build("electra")
    structure = structure_of(model)
    for group in structure.groups[:2]:
        scores = magnitude(model, group)
        for unit in (0, group.units - 1):
            small = clone(model)
            cut(small, structure, {group.name: [u for u in range(group.units) if u != unit]})
            total = [sum(float(p.double().square().sum()) for p in m.parameters()) for m in (model, small)]
            assert scores[unit].item() == pytest.approx(total[0] - total[1], rel=1e-9)


def test_random_importance_depends_on_seed_and_name_alone():
    first, second = structure_of(build("bert")).groups[:2]
    assert torch.equal(random_importance(first, 0), random_importance(first, 0))
    assert not torch.equal(random_importance(first, 0), random_importance(first, 1))
    assert not torch.equal(random_importance(first, 0), random_importance(second, 0)[: first.units])


@pytest.mark.parametrize(
    ("head", "labels"), [("classes", torch.tensor([2, 0])), ("regression", torch.tensor([0.3, 2.0]))]
)
def test_fisher_is_the_squared_slope_of_the_loss(head, labels):
    model = build("bert", head).double()
    structure, batch, eps = structure_of(model, head), make_batch(labels=labels), 1e-5
    scores = fisher_batch(model, structure, structure.groups, batch)

    def loss(group, gates):
        with torch.no_grad(), gated(model, {group: gates}):
            logits = model(**batch.inputs).logits
        if head == "regression":
            return (logits.squeeze(-1) - labels).square()
        return -logits.log_softmax(dim=-1)[torch.arange(2), labels]

    for group in structure.groups[:2]:
        step = torch.zeros(group.units, dtype=torch.float64)
        step[1] = eps
        slope = (loss(group, 1 + step) - loss(group, 1 - step)) / (2 * eps)
        torch.testing.assert_close(scores[group.name][:, 1], slope.square(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("head", "labels"), [("classes", None), ("labels", torch.tensor([1, 0])), ("answers", torch.tensor([1, 0]))]
)
def test_fisher_needs_labels_of_one_class_or_number(head, labels):
    model = build("bert", head)
    structure = structure_of(model, head)
    with pytest.raises(DataError) as caught:
        fisher_batch(model, structure, structure.groups, make_batch(labels=labels))
    assert "--criterion trajectory" in caught.value.hint


def test_energies_of_units_inside_mixtures_of_experts():
    """Padding counts nothing; the activations of a token for each of its experts stand side by side."""
    model = build("qwen3-moe", "next")
    structure, batch = structure_of(model, "next"), make_batch(2, 10, padding=4)
    seen = {}
    with hooks() as hook, unit_energies(model, structure.groups[1:3], batch) as energies, torch.no_grad():
        for group in structure.groups[1:3]:
            hook.before(model.get_submodule(group.gate), lambda _m, x, name=group.name: seen.update({name: x[0]}))
        model(**batch.inputs)
    real, down = batch.token_mask, model.model.layers[0].mlp.experts.down_proj.square()
    sizes = {"decoder.0.expert": down.sum(dim=(1, 2)), "decoder.0.expert-neuron": down.sum(dim=(0, 1))}
    for name, size in sizes.items():
        rows = [
            each[own].square().flatten(0, -2).sum(dim=0) for each, own in zip(laid(seen[name], real), real, strict=True)
        ]
        expected = (torch.stack(rows) * size).reshape(*energies[name].shape, -1).sum(dim=-1)
        torch.testing.assert_close(energies[name].float(), expected)


def laid(units, real):
    """(rows, tokens, experts of a token, units)."""
    return units.reshape(*real.shape, -1, units.shape[-1])
