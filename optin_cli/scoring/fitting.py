"""Find the batch size that fits into the memory of a GPU."""

from collections.abc import Callable
from dataclasses import replace

import torch

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.errors import CheckpointError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import Progress
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.one_shot import plan_run


def fit_batches(
    checkpoint: Checkpoint,
    options: ScoreOptions,
    calibrated: Callable[[ScoreOptions], Calibration],
    seq_len: int | None,
    progress: Progress,
) -> tuple[ScoreOptions, Calibration]:
    """The options with a batch size whose largest batch fits, halved until it does, and batches of it.

    Processes take the smallest size that any of them finds. A smaller size than was asked for is said.

    Args:
        calibrated: makes the batches that options ask for.

    Raises:
        CheckpointError: not even one sample fits.
    """
    tried, calibration = options, calibrated(options)
    while not fits(checkpoint, calibration, tried, seq_len):
        if tried.batch_size == 1:
            raise CheckpointError(
                f"Not even one sample fits into the memory of {checkpoint.device} beside {checkpoint.name}.",
                hint="Pass --dtype bfloat16, a smaller --max-length, or --device cpu.",
            )
        tried = replace(tried, batch_size=tried.batch_size // 2)
        calibration = calibrated(tried)
    common = min(checkpoint.processes.gather([tried.batch_size]))
    if common < tried.batch_size:
        tried = replace(tried, batch_size=common)
        calibration = calibrated(tried)
    if common < options.batch_size:
        progress.note(f"Batches of {options.batch_size} do not fit into the memory of the device; {common} do.")
    return tried, calibration


def fits(checkpoint: Checkpoint, calibration: Calibration, options: ScoreOptions, seq_len: int | None) -> bool:
    """Whether the largest batch can be scored, which is tried; its sums are dropped."""
    run = plan_run(checkpoint, calibration, options, seq_len)
    numbers = [sum(tensor.numel() for tensor in batch.inputs.values()) for batch in calibration.batches]
    try:
        run.jobs[numbers.index(max(numbers))].run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True
