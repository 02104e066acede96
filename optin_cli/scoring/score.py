"""Score the importance of every unit of a checkpoint."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.checks import require_loss
from optin_cli.data.load import source_of
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.model.arithmetic import reproducible
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import NotFiniteError, SavedState, require_finite
from optin_cli.scoring.calibration import Calibration, calibrate
from optin_cli.scoring.fitting import fit_batches
from optin_cli.scoring.kinds import KIND_ESTIMATORS, KindEstimator, estimators_of
from optin_cli.scoring.one_shot import only_units, score_checkpoint
from optin_cli.scoring.spill import forget_spill
from optin_cli.scoring.streamed import check_streamed, score_streamed


@dataclass(frozen=True)
class Prepared:
    """A run whose checkpoint is open and whose data is read.

    options: with a batch size that fits. estimators: by kind, of units that have their own.
    """

    checkpoint: Checkpoint
    calibration: Calibration | None
    options: ScoreOptions
    seq_len: int | None
    estimators: Mapping[str, KindEstimator]


def prepare(
    checkpoint: Checkpoint | str | Path,
    data: DataSpec | str | Path | None,
    options: ScoreOptions,
    *,
    seq_len: int | None,
    progress: Progress,
) -> Prepared:
    """Open what is to be scored, check it, and read the data; arguments and errors as of `score`."""
    spec, criterion = DataSpec.of(data), CRITERIA[options.criterion]
    if criterion.needs_data and not spec.is_named:
        raise UsageError(
            f"The criterion {options.criterion} needs calibration data.",
            hint="Pass --calib with a task name (sst2) or a file or folder of texts.",
        )
    checkpoint = as_checkpoint(checkpoint)
    if checkpoint.streaming is not None:
        check_streamed(checkpoint, options)
    if criterion.needs_labels:
        require_loss(
            checkpoint,
            spec.resolve(checkpoint.input.kind)[0],
            data=str(spec.source or spec.path),
            needed_by=f"The criterion {options.criterion}",
            hint="Use --criterion trajectory, which needs no labels, or labelled data of the model's own task.",
        )
    extra = estimators_of(checkpoint, options)
    checkpoint = replace(checkpoint, structure=only_units(checkpoint.structure, options))
    calibration, length = None, checkpoint.input.length(seq_len)
    if criterion.needs_data:
        wanted = spec.calibrating(
            options.samples,
            options.seed,
            labelled=criterion.needs_labels,
            length=options.max_length or length,
        )
        samples = checkpoint.input.load_samples(wanted, progress)
        labelled = criterion.needs_labels
        calibrated = functools.partial(calibrate, checkpoint, samples, task=wanted.task, labelled=labelled)
        if checkpoint.device.type == "cuda" and checkpoint.streaming is None:
            options, calibration = fit_batches(checkpoint, options, calibrated, length, progress)
        else:
            calibration = calibrated(options)
        calibration = replace(calibration, source=source_of(samples, wanted))
    return Prepared(checkpoint, calibration, options, length, extra)


@reproducible()
def score(
    checkpoint: Checkpoint | str | Path,
    data: DataSpec | str | Path | None = None,
    options: ScoreOptions | None = None,
    *,
    seq_len: int | None = None,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Scores:
    """Importance of every unit.

    Args:
        data: calibration data: a task name, or a file or folder of texts or images. Only some criteria need labels.
        seq_len: length of text that the recorded costs are stated for.
        state: file in which an interrupted run leaves what `resume` continues from; see `forget`.

    Raises:
        OptinError: bad data, an unfit checkpoint, or options that contradict each other.
    """
    ready = prepare(checkpoint, data, options or ScoreOptions(), seq_len=seq_len, progress=progress)
    checkpoint, calibration, options, length = ready.checkpoint, ready.calibration, ready.options, ready.seq_len
    saved = SavedState(state, resume)
    try:
        if checkpoint.streaming is not None and calibration is not None:
            scores = score_streamed(checkpoint, calibration, options, seq_len=length, state=saved, progress=progress)
        else:
            scores = score_checkpoint(checkpoint, calibration, options, seq_len=length, state=saved, progress=progress)
        if calibration is not None:
            for name, estimator in ready.estimators.items():
                scores = estimator.add(scores, checkpoint, calibration, options, saved.part(name), progress)
        require_finite({name: torch.as_tensor(values) for name, values in scores.importance.items()})
    except NotFiniteError:
        forget(state)
        raise
    return scores


def forget(state: Path | None) -> None:
    """Remove what `score` left in `state`, once its result is safe."""
    for saved in (SavedState(state), *map(SavedState(state).part, KIND_ESTIMATORS)):
        if saved.path is not None:
            saved.path.unlink(missing_ok=True)
    forget_spill(SavedState(state))
