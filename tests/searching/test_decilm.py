"""What configs of DeciLM state, and masks of that layout."""

import numpy as np
import pytest

from optin_cli.artifacts.base import Totals
from optin_cli.artifacts.costs import ConfigCounts, GroupCost
from optin_cli.errors import BudgetError, UsageError
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.decilm import block_configs, ffn_mult, intermediate_size, require_decilm
from optin_cli.searching.limits import Limits


@pytest.mark.parametrize(
    ("multiplier", "width"),
    [(0.5, 2816), (1.0, 5632), (1.3125, 7168), (2.625, 14336), (5.25, 28672)],
)
def test_multipliers_of_the_published_51b_model(multiplier, width):
    assert intermediate_size(multiplier, 8192) == width


@pytest.mark.parametrize("hidden_size", [1, 32, 576, 896, 960, 2048, 3072, 4096, 8191, 8192, 16384])
def test_every_multiple_of_256_has_a_multiplier(hidden_size):
    for width in range(256, 30 * 1024, 256):
        assert intermediate_size(ffn_mult(width, hidden_size), hidden_size) == width


def test_blocks_state_heads_that_share_keys_and_values():
    first, second = block_configs([(9, 3), (9, 9)], [256, 1536], 576)
    assert first["attention"] == {"n_heads_in_group": 3, "no_op": False, "replace_with_linear": False}
    assert second["attention"]["n_heads_in_group"] == 1
    assert [intermediate_size(block["ffn"]["ffn_mult"], 576) for block in (first, second)] == [256, 1536]


def layers(neurons, heads=4, number=3):
    """Costs and importances of decoder layers, whose earlier neurons matter more in later layers."""
    generator = np.random.default_rng(0)
    groups, importance = {}, {}
    for layer in range(number):
        for kind, units, macs in (("head", heads, 50.0), ("neuron", neurons, 3.0)):
            name = f"decoder.{layer}.{kind}"
            importance[name] = (generator.random(units) * 2**layer).astype(np.float32)
            groups[name] = GroupCost(
                kind=kind,
                block=f"decoder.{layer}",
                units=units,
                unit_macs=macs,
                unit_parameters=int(macs),
                stock=ConfigCounts(),
            )
    macs = sum(group.unit_macs * group.units for group in groups.values())
    return importance, Costs(groups, Totals(macs=int(macs), parameters=int(macs), bytes=0))


@pytest.mark.parametrize(
    ("neurons", "share", "round_to"), [(1024, 0.6, 1), (1024, 0.8, 32), (1100, 0.7, 1), (2048, 0.5, 512)]
)
def test_layers_keep_multiples_of_256_neurons_and_the_same_heads(neurons, share, round_to):
    importance, costs = layers(neurons)
    kept = choose_units(importance, costs, Limits(keep_macs=share, layout="deci", round_to=round_to))
    widths = [len(units) for name, units in kept.items() if name.endswith("neuron")]
    assert all(width >= 256 and width % max(256, round_to) == 0 for width in widths)
    assert len(set(widths)) > 1
    assert len({len(units) for name, units in kept.items() if name.endswith("head")}) == 1
    assert costs.remaining(kept)["macs"] <= share
    for name, units in kept.items():
        assert min(importance[name][units]) >= max(np.delete(importance[name], units), default=0)


def test_layers_with_fewer_neurons_than_a_multiple_are_refused():
    importance, costs = layers(200)
    with pytest.raises(BudgetError, match=r"decoder.0.neuron has 200 neurons, fewer than the 256"):
        choose_units(importance, costs, Limits(keep_macs=0.9, layout="deci"))


def test_other_models_and_searches_are_refused():
    with pytest.raises(UsageError, match="cannot be had for Qwen2ForCausalLM"):
        require_decilm("Qwen2ForCausalLM")
    importance, costs = layers(1024)
    with pytest.raises(UsageError, match="has no deci layout"):
        choose_units(importance, costs, Limits(keep_macs=0.9, layout="deci"), algorithm="optin")
