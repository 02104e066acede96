"""Token schedules at a price, and the joint search for tokens and units."""

import numpy as np
import pytest

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import BlockCost, GroupCost, TokenCosts
from optin_cli.errors import BudgetError
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits
from optin_cli.searching.token_schedule import Schedules, choose_with_tokens


def invented(seed, units=5, blocks=3):
    """Importances, unit costs and token costs of a model that does not exist."""
    draw = np.random.default_rng(seed)
    names = [f"encoder.{number}" for number in range(blocks)]
    macs = {name: float(draw.integers(400, 800)) for name in names}
    squares = {name: float(draw.integers(0, 200)) for name in names}
    groups = {
        f"{name}.neuron": GroupCost(kind="neuron", block=name, units=6, unit_macs=macs[name] / 10, unit_parameters=1)
        for name in names
    }
    groups |= {
        f"{name}.token": GroupCost(kind="token", block=name, units=units, unit_macs=0.0, unit_parameters=0)
        for name in names[:-1]
    }
    importance = {name: np.sort(draw.random(g.units)).astype(np.float32) for name, g in groups.items()}
    tokens = TokenCosts(
        length=units + 2,
        special=2,
        width=1,
        blocks={name: BlockCost(macs=macs[name], square=squares[name]) for name in names},
        unit_square={f"{name}.neuron": squares[name] / 12 for name in names},
    )
    totals = Totals(macs=int(sum(macs.values())) + 50, parameters=100, bytes=400)
    return importance, Costs(groups, totals, tokens)


def lost_by(kept, importance):
    return sum(float(v.sum()) - float(v[kept[name]].sum()) for name, v in importance.items())


@pytest.mark.parametrize("seed", range(4))
def test_schedules_at_a_price(seed):
    importance, costs = invented(seed)
    groups, totals = costs.groups, costs.totals
    schedules = Schedules(importance, costs.token_groups, costs.tokens, set())
    for price in (1e-5, 1e-3, 1e-2, 1.0):

        def objective(counts, price=price):
            kept = schedules.kept(counts)
            whole = {name: [*range(group.units)] for name, group in groups.items()}
            share = costs.remaining({**whole, **kept})["macs"]
            return lost_by(kept, {n: importance[n] for n in kept}) + price * share * totals.macs

        every = [(a, b) for a in range(5) for b in range(5)]
        assert objective(schedules.at_price(price)) == pytest.approx(min(map(objective, every)))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_joint_search(share):
    """It keeps the budget, loses no more than units alone would, and what is protected stays."""
    importance, costs = invented(1)
    groups = costs.groups

    def solve(costs, limits):
        return choose_units(importance, costs, limits)

    widths = [name for name, group in groups.items() if group.kind == "neuron"]
    alone = solve(costs.only(widths), Limits(keep_macs=share))
    kept = choose_with_tokens(solve, importance, costs, Limits(keep_macs=share))
    assert list(kept) == list(groups)
    assert costs.remaining(kept)["macs"] <= share
    assert lost_by(kept, importance) <= lost_by(alone, {n: importance[n] for n in alone}) + 1e-6
    limits = Limits(keep_macs=max(share, 0.6), protect=("*.token", "encoder.0.neuron"))
    kept = choose_with_tokens(solve, importance, costs, limits)
    assert all(kept[name] == [*range(group.units)] for name, group in groups.items() if group.kind == "token")
    assert kept["encoder.0.neuron"] == [*range(6)]


def test_budgets_that_tokens_cannot_meet():
    importance, costs = invented(1)

    def solve(costs, limits):
        return choose_units(importance, costs, limits)

    with pytest.raises(
        BudgetError, match=r"0\.05 of the macs cannot be met: the smallest reachable share is 0\.\d{4}\."
    ):
        choose_with_tokens(solve, importance, costs, Limits(keep_macs=0.05))
