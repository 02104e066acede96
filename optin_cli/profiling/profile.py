"""Profile what a model and its units cost, in MACs and parameters or in time."""

from pathlib import Path

from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.model.costs import measure_costs
from optin_cli.options.latency import LatencyOptions
from optin_cli.profiling.latency import measure_table
from optin_cli.progress import SILENT, Progress
from optin_cli.version import __version__


def profile(checkpoint: Checkpoint | str | Path, *, seq_len: int | None = None) -> Profile:
    """What the whole model and each group's units cost.

    Args:
        seq_len: length of text that costs are stated for, None for 128 tokens or what the model holds.
    """
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


def profile_latency(
    checkpoint: Checkpoint | str | Path,
    *,
    seq_len: int | None = None,
    options: LatencyOptions | None = None,
    progress: Progress = SILENT,
) -> LatencyTable:
    """What the whole model and each group's units cost in time on the checkpoint's device, for `search`."""
    opened, options = as_checkpoint(checkpoint), options or LatencyOptions()
    workload = opened.input.workload(opened.input.length(seq_len), options.batch_size)
    return measure_table(opened, workload, options, progress=progress)
