"""Exact scores are the distance to the model really pruned."""

import pytest
import torch
from helpers.estimators import assert_close, exact, sketch
from helpers.models import (
    FAMILIES,
    HEADS,
    build,
    clone,
    make_batch,
    structure_of,
)

from optin_cli.model.cut import cut
from optin_cli.model.forward import observe
from optin_cli.model.lookup import tensor_at
from optin_cli.scoring.distances import manifold_distance, output_distance
from optin_cli.scoring.sketch import Objective


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["classes", "answers"])
def test_replay_changes_nothing(family, head):
    model = build(family, head, **({"n_layers": 2} if family == "distilbert" else {"num_hidden_layers": 2}))
    structure, batch = structure_of(model, head), make_batch(rows=2, tokens=6, padding=2)
    units = {g.name: range(0, g.units, 1 if g.kind == "head" else 10) for g in structure.groups}
    with_replay = exact(model, structure, batch, units=units)
    assert_close(with_replay, exact(model, structure, batch, units=units, rows=None))
    assert all((values > 0).any() for values in with_replay.values())


@pytest.mark.parametrize("head", HEADS)
def test_exact_is_the_distance_to_the_model_really_cut(head):
    model = build("bert", head, num_hidden_layers=2)
    structure, batch = structure_of(model, head), make_batch()
    mask, objective = batch.token_mask, Objective(0.7, 0.3, 2.0)
    reference = observe(model, structure, batch)
    scores = exact(model, structure, batch, objective)
    for name, unit in [("encoder.0.head", 1), ("encoder.0.neuron", 5), ("encoder.1.head", 2), ("encoder.1.neuron", 0)]:
        small = clone(model)
        cut(small, structure, {name: [u for u in range(structure.group(name).units) if u != unit]})
        mine = observe(small, structure, batch)
        first = int(name.split(".")[1])
        manifold = sum(
            manifold_distance(a, b, mask) for a, b in list(zip(mine.features, reference.features, strict=True))[first:]
        )
        output = sum(
            rule.weight * output_distance(a, b, rule.kind, 2.0, mask if head in ("tokens", "masked", "base") else None)
            for a, b, rule in zip(mine.outputs, reference.outputs, structure.outputs, strict=True)
        )
        torch.testing.assert_close(
            scores[name][:, unit], (0.7 * manifold + 0.3 * output).double(), rtol=1e-3, atol=1e-7
        )


def test_a_unit_that_nothing_reads_has_no_importance():
    model = build("bert")
    structure, batch = structure_of(model), make_batch()
    for group in structure.groups:
        tensor_at(model, f"{group.consumer}.weight")[:, : group.unit_width] = 0
    for scores in (exact(model, structure, batch), sketch(model, structure, batch)):
        for values in scores.values():
            assert values[:, 0].abs().max() < 1e-9
            assert (values[:, 1:].mean(dim=0) > 0).any()
