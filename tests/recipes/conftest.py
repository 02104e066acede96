"""A tiny checkpoint, its costs, and every recipe prepared on it."""

import pytest
from helpers.recipes import setting_of, tiny_checkpoint

from optin_cli.artifacts.base import Workload
from optin_cli.model.costs import measure_costs
from optin_cli.recipes.registry import recipes


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory)


@pytest.fixture(scope="session")
def costs(tiny):
    return measure_costs(tiny.model, tiny.structure, tiny.input.example(Workload(seq_len=16)), tiny.weight_bytes)


@pytest.fixture(scope="session")
def slice_costs(tiny, costs):
    totals, groups = costs
    return totals, {group.name: groups[group.name] for group in tiny.structure.groups}


@pytest.fixture(scope="session")
def prepared(tiny):
    return {name: recipe.prepare(setting_of(tiny)) for name, recipe in recipes().items()}
