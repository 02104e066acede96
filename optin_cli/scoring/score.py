"""Score the importance of every unit of a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.checks import require_loss
from optin_cli.data.load import source_of
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import NotFiniteError, SavedState, require_finite
from optin_cli.scoring.calibration import calibrate
from optin_cli.scoring.kinds import KIND_ESTIMATORS, estimators_of
from optin_cli.scoring.one_shot import only_units, score_checkpoint


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
    options, spec = options or ScoreOptions(), DataSpec.of(data)
    criterion = CRITERIA[options.criterion]
    if criterion.needs_data and not spec.is_named:
        raise UsageError(
            f"The criterion {options.criterion} needs calibration data.",
            hint="Pass --calib with a task name (sst2) or a file or folder of texts.",
        )
    checkpoint = as_checkpoint(checkpoint)
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
        calibration = calibrate(checkpoint, samples, options, task=wanted.task, labelled=criterion.needs_labels)
        calibration = replace(calibration, source=source_of(samples, wanted))
    saved = SavedState(state, resume)
    try:
        scores = score_checkpoint(checkpoint, calibration, options, seq_len=length, state=saved, progress=progress)
        if calibration is not None:
            for name, estimator in extra.items():
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
