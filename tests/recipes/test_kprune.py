"""K-prune: knowledge, its search from below, and what it spends."""

from dataclasses import replace

import torch
from helpers.recipes import batches, setting_of

from optin_cli.model.masking import gated
from optin_cli.recipes.kprune import measure_knowledge, prune_upward, search_rest
from optin_cli.refit.residual_stream import gather
from optin_cli.scoring.baselines import unit_energies
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits


def test_representational_knowledge_is_the_change_of_the_output(tiny):
    batch, structure = batches()[0], tiny.structure
    columns = [replace(group, units=group.width, unit_width=1) for group in structure.groups[:2]]
    with torch.no_grad(), unit_energies(tiny.model, columns, batch) as found:
        tiny.model(**batch.inputs)
    for group in columns:
        whole = gather(tiny.model, tiny.structure, group, batch, 1)[0].out
        for unit in (0, group.units - 1):
            gate = torch.ones(group.units)
            gate[unit] = 0.0
            with gated(tiny.model, {group: gate}):
                without = gather(tiny.model, tiny.structure, group, batch, 1)[0].out
            change = ((whole - without) * batch.token_mask[..., None]).double().square().sum(dim=(1, 2))
            torch.testing.assert_close(found[group.name][:, unit], change, rtol=1e-4, atol=1e-7)


def test_the_search_above_spends_what_is_left(tiny, slice_costs):
    totals, groups = slice_costs
    importance = measure_knowledge(setting_of(tiny), tiny.model, tiny.structure.groups)
    for limits in (Limits(keep_macs=0.5), Limits(keep_macs=0.6, keep_parameters=0.7)):
        whole = search_rest(importance, Costs(groups, totals), limits, {})
        done = {}
        for name in groups:
            found = search_rest(importance, Costs(groups, totals), limits, done)
            assert list(found) == [n for n in groups if n not in done]
            assert found == {n: whole[n] for n in found}
            done[name] = found[name]


def test_what_the_first_sublayers_free_goes_to_the_later_ones(tiny, slice_costs):
    totals, groups = slice_costs
    importance = measure_knowledge(setting_of(tiny), tiny.model, tiny.structure.groups)
    first = {name: [] for name in list(groups)[:2]}
    more = search_rest(importance, Costs(groups, totals), Limits(keep_macs=0.5), first)
    less = search_rest(importance, Costs(groups, totals), Limits(keep_macs=0.5), {})
    assert sum(len(more[n]) for n in more) > sum(len(less[n]) for n in more)
    assert Costs(groups, totals).remaining(first | more)["macs"] <= 0.5


def test_a_whole_budget_changes_nothing(tiny):
    setting = setting_of(tiny)
    importance = measure_knowledge(setting, tiny.model, tiny.structure.groups)
    kept, report, tuned = prune_upward(setting, importance, Limits(keep_macs=1.0))
    assert all(len(units) == setting.slice_costs.groups[name].units for name, units in kept.items())
    assert report == tuned == {}
