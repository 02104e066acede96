"""FLAP: fluctuations, the threshold that its search stands for, and what biases take over."""

import numpy as np
import pytest
import torch
from helpers.recipes import batches, setting_of

from optin_cli.artifacts.costs import GroupCost
from optin_cli.model.forward import hooks
from optin_cli.pruning.prune import cut_copy
from optin_cli.recipes.flap import Columns, compensate, fluctuation, gains, measure_columns, standardised
from optin_cli.recipes.registry import recipes
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


def rows_at(model, path, data, *, output=False):
    """Inputs or outputs of a module at all real tokens: (tokens, columns) float64."""
    found = []
    for batch in data:
        with torch.no_grad(), hooks() as hook:
            hook.after(
                model.get_submodule(path),
                lambda _module, inputs, out, batch=batch: found.append(
                    (out if output else inputs[0])[batch.token_mask]
                ),
            )
            model(**batch.inputs)
    return torch.cat(found).double()


def test_fluctuations_are_variances_times_squared_norms(tiny):
    columns, model = measure_columns(setting_of(tiny)), tiny.model
    for group in tiny.structure.groups:
        x, found = rows_at(model, group.consumer, batches()), columns[group.consumer]
        assert found.tokens == len(x)
        torch.testing.assert_close(found.mean, x.mean(dim=0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.variance, x.var(dim=0), rtol=1e-5, atol=1e-9)
        scores = x.var(dim=0) * model.get_submodule(group.consumer).weight.double().square().sum(dim=0)
        expected = (scores - scores.mean()) / scores.std(correction=0)
        expected = expected.reshape(group.units, group.unit_width).mean(dim=1)
        torch.testing.assert_close(fluctuation(model, group, found), expected, rtol=1e-4, atol=1e-6)


def test_columns_that_are_all_alike_have_no_standard():
    assert standardised(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert Columns(torch.zeros(2), torch.zeros(2)).variance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("macs", [True, False])
def test_gains_by_cost_are_scores(macs):
    cost = {"unit_macs": 6.0, "unit_parameters": 2}
    shape = {"kind": "neuron", "block": "b", "units": 3, "unit_width": 1, "least": 0}
    groups = {"a": GroupCost(**shape, **cost), "b": GroupCost(**shape, **{k: 10 * v for k, v in cost.items()})}
    scores = {"a": torch.tensor([-1.0, 0.5, 2.0]), "b": torch.tensor([0.0, 1.0, 3.0])}
    found = gains(scores, Costs(groups, None), macs=macs)
    each = [found[name] / (group.unit_macs if macs else group.unit_parameters) for name, group in groups.items()]
    np.testing.assert_allclose(each, [[0.0, 1.5, 3.0], [1.0, 2.0, 4.0]])


def test_biases_keep_the_mean_of_what_a_consumer_puts_out(tiny):
    """Of the first one: later inputs are not the original's."""
    decision = recipes()["flap"].prepare(setting_of(tiny))(Limits(keep_macs=0.6))
    first = next(g for g in tiny.structure.groups if len(decision.kept[g.name]) < g.units)
    model, _ = cut_copy(tiny, decision.kept)
    original = rows_at(tiny.model, first.consumer, batches(), output=True).mean(dim=0)
    bare = rows_at(model, first.consumer, batches(), output=True).mean(dim=0)
    assert not torch.allclose(bare, original, atol=1e-3 * float(original.abs().max()))
    decision.adjust(model)
    adjusted = rows_at(model, first.consumer, batches(), output=True).mean(dim=0)
    torch.testing.assert_close(adjusted, original, rtol=1e-4, atol=1e-5)


def test_a_consumer_without_bias_gets_one_if_it_lost_columns(tiny):
    setting, groups = setting_of(tiny), tiny.structure.groups
    kept = {group.name: list(range(group.units - (group is groups[0]))) for group in groups}
    model, _ = cut_copy(tiny, kept)
    for group in groups:
        model.get_submodule(group.consumer).bias = None
    compensate(setting, model, kept, measure_columns(setting))
    given = [group.name for group in groups if model.get_submodule(group.consumer).bias is not None]
    assert given == [groups[0].name]
