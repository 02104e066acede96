"""A tiny checkpoint, its costs, and every recipe prepared on it."""

import pytest
from helpers.models import save_checkpoint
from helpers.recipes import setting_of

from optin_cli.artifacts.base import Workload
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.costs import measure_costs
from optin_cli.recipes.registry import recipes


def load(tmp_path_factory, family="bert", **options):
    folder = tmp_path_factory.mktemp("recipes") / family
    return load_checkpoint(save_checkpoint(folder, family, **({"num_labels": 2} | options)), device="cpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return load(tmp_path_factory)


@pytest.fixture(scope="session")
def costs(tiny):
    return measure_costs(tiny.model, tiny.structure, tiny.input.example(Workload(seq_len=16)), tiny.weight_bytes)


@pytest.fixture(scope="session")
def prepared(tiny):
    return {name: recipe.prepare(setting_of(tiny)) for name, recipe in recipes().items()}
