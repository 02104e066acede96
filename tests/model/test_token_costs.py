"""Promised costs of merged tokens are measured costs."""

import copy

import pytest
from helpers.models import make_pixels, random_kept
from helpers.tokens import tokens_kept

from optin_cli.artifacts.costs import GroupCost
from optin_cli.model.costs import count_macs, measure_costs
from optin_cli.model.cut import cut
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import tokens_of
from optin_cli.searching.costs import Costs
from optin_cli.searching.token_costs import token_saving


@pytest.mark.parametrize("family", ["timm-dinov2", "vit"])
def test_promised_costs_are_measured(image_checkpoint, family):
    checkpoint = image_checkpoint(family)
    structure, tokens, inputs = checkpoint.structure, tokens_of(checkpoint.structure), make_pixels(checkpoint.model, 1)
    totals, groups = measure_costs(checkpoint.model, structure, inputs, 0)
    costs = measure_token_costs(checkpoint.model, structure, tokens, inputs)
    sequences = {
        name: GroupCost(kind="token", block=block, units=tokens.mergeable, unit_macs=0.0, unit_parameters=0)
        for name, block in tokens.block_of.items()
    }

    def measure(kept):
        model = copy.deepcopy(checkpoint.model)
        cut(model, structure, kept)
        return count_macs(model, inputs)[0]

    whole = {group.name: list(range(group.units)) for group in structure.groups}
    for counts in [(0, 0), (3, 1), (8, 0), (0, 8), (5, 3)]:
        for others in (random_kept(structure, 3), {"encoder.1.head": []}):
            kept = {**whole, **others, **tokens_kept(checkpoint, *counts)}
            promised = Costs({**groups, **sequences}, totals, costs).remaining(kept)["macs"] * totals.macs
            assert measure(kept) == pytest.approx(promised, rel=1e-9)
    for number, block in enumerate(tokens.block_of.values()):
        one = tokens_kept(checkpoint, *([0] * number), 1)
        assert totals.macs - measure(one) == pytest.approx(token_saving(costs, block), rel=1e-9)
