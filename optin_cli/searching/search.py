"""Search for the mask that loses least importance within budgets."""

from dataclasses import replace

from optin_cli.artifacts.base import Options, Source, require_description, require_source
from optin_cli.artifacts.mask import Budget, GroupMask, Mask
from optin_cli.artifacts.scores import Scores
from optin_cli.errors import ArtifactError
from optin_cli.files import sha256_of
from optin_cli.options.search import Algorithm
from optin_cli.searching.choose import choose
from optin_cli.searching.costs import Costs, importance_lost
from optin_cli.searching.decilm import require_decilm
from optin_cli.searching.limits import Limits
from optin_cli.searching.token_schedule import limits_with_tokens
from optin_cli.searching.uniform import require_expressible
from optin_cli.version import __version__

CARRIED = ("checkpoint", "architecture", "calibration")
"""Inputs of scores that a mask records too."""


def search(
    scores: Scores, limits: Limits, *, algorithm: Algorithm = "exact", name: str = "scores", table_name: str = "latency"
) -> Mask:
    """The mask that loses least importance within the limits.

    Args:
        algorithm: "exact" (integer program), or "optin" for the search of the OPTIN paper.
        name, table_name: what the mask calls the scores file and the latency table.

    Raises:
        BudgetError: no mask meets the limits; states the smallest reachable share.
        UsageError: no budget, one out of range, or a group to protect that does not exist.
        ArtifactError: the latency table is of another checkpoint or architecture description.
    """
    limits.require_shares()
    header, costs, table = scores.header, Costs.of(scores.header), limits.latency_table
    inputs = {"scores": scores.source(name)} | {role: header.inputs[role] for role in CARRIED if role in header.inputs}
    if table is not None:
        require_source(table, table_name, "checkpoint", header.inputs["checkpoint"])
        require_description(table, table_name, header.inputs.get("architecture"), f"{name} was made")
        inputs["latency_table"] = Source(name=table_name, sha256=sha256_of(table.dump().encode()))
    if limits.layout == "deci":
        require_decilm(header.architecture)
    if limits.layout != "ragged":
        require_expressible(header.groups, header.architecture)
    limits = limits_with_tokens(limits, costs)
    kept = choose(scores, limits, algorithm)
    ragged = None if limits.layout == "ragged" else choose(scores, replace(limits, layout="ragged"), algorithm)
    reached, within = costs.remaining(kept), costs.within_blocks(kept)
    timed: Options = {}
    if table is not None:
        reached["latency"] = table.reached({group: len(units) for group, units in within.items()})
        shape = table.workload.model_dump(mode="json")
        timed = {"latency": {"device": table.device, "threads": table.threads, **shape}}
    for what, share in reached.items():
        if not 0 <= share <= 1:
            source = table_name if what == "latency" else name
            raise ArtifactError(
                f"A mask would leave {share:.4f} of the {what}: the costs in {source} add up to more than the model's.",
                hint="Make it again from the checkpoint.",
            )
    return Mask(
        optin_version=__version__,
        options={
            "criterion": header.criterion,
            "algorithm": algorithm,
            "round_to": limits.round_to,
            "minima": dict(limits.minima or {}),
            "protect": list(limits.protect),
            "layout": limits.layout,
            **timed,
        },
        inputs=inputs,
        workload=header.workload,
        budget=Budget(asked=limits.asked(), reached=reached),
        importance_lost=importance_lost(within, scores.importance),
        ragged_importance_lost=None
        if ragged is None
        else importance_lost(costs.within_blocks(ragged), scores.importance),
        groups={group: GroupMask(units=costs.units, kept=kept[group]) for group, costs in header.groups.items()},
    )
