"""The Python API: one function a stage, each taking and returning what the command line reads and writes."""

from __future__ import annotations

from pathlib import Path

from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.synthetic_inputs import example_inputs, workload_length, workload_of
from optin_cli.model.costs import measure_costs
from optin_cli.options.latency import LatencyOptions
from optin_cli.profiling.latency import measure_table
from optin_cli.progress import SILENT, Progress
from optin_cli.version import __version__


def profile(checkpoint: Checkpoint | str | Path, *, seq_len: int | None = None) -> Profile:
    """What the whole model and each group's units cost."""
    checkpoint = as_checkpoint(checkpoint)
    workload = workload_of(checkpoint, workload_length(checkpoint, seq_len))
    totals, groups = measure_costs(
        checkpoint.model, checkpoint.structure, example_inputs(checkpoint, workload), checkpoint.weight_bytes
    )
    return Profile(
        optin_version=__version__,
        options={},
        inputs=checkpoint.sources,
        family=checkpoint.structure.family,
        architecture=checkpoint.model_class,
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
    workload = workload_of(opened, workload_length(opened, seq_len), options.batch_size)
    return measure_table(opened, workload, options, progress=progress)
