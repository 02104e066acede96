"""Costs of the original of a mask, against which the shares that the mask reaches are counted."""

from optin_cli.artifacts.costs import TOKEN, GroupCost
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.model.costs import measure_costs
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import tokens_of
from optin_cli.searching.costs import Costs


def measure_original(checkpoint: Checkpoint, mask: Mask) -> Costs:
    """Costs of the original, and of the units of the groups that a mask names, at the mask's workload."""
    model, structure, inputs = checkpoint.model, checkpoint.structure, checkpoint.input.example(mask.workload)
    totals, groups = measure_costs(model, structure, inputs, checkpoint.weight_bytes)
    groups = {name: cost for name, cost in groups.items() if name in mask.groups}
    tokens = tokens_of(structure)
    if tokens is None or not tokens.units.keys() & mask.groups.keys():
        return Costs(groups, totals)
    # Only the number of merging tokens is asked of these groups; what they save follows from the costs of blocks.
    nothing = {"unit_macs": 0.0, "unit_parameters": 0}
    groups |= {
        name: GroupCost(kind=TOKEN, block=block, units=tokens.mergeable, **nothing)
        for name, block in tokens.block_of.items()
    }
    return Costs(groups, totals, measure_token_costs(model, structure, tokens, inputs))
