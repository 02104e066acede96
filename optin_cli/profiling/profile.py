"""Profile what a model and its units cost, in MACs and parameters."""

from pathlib import Path

from optin_cli.artifacts.costs import Profile
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.model.costs import measure_costs
from optin_cli.version import __version__


def profile(checkpoint: Checkpoint | str | Path, *, seq_len: int | None = None) -> Profile:
    """What the whole model and each group's units cost, for texts of `seq_len` tokens (None: 128, or what it holds)."""
    checkpoint = as_checkpoint(checkpoint)
    takes = checkpoint.input
    workload = takes.workload(takes.length(seq_len))
    totals, groups = measure_costs(
        checkpoint.model, checkpoint.structure, takes.example(workload), checkpoint.weight_bytes
    )
    return Profile(
        optin_version=__version__,
        options={},
        inputs=checkpoint.sources,
        family=checkpoint.structure.family,
        architecture=checkpoint.blueprint.model_class,
        workload=workload,
        totals=totals,
        groups=groups,
    )
