"""Classification and regression: one label a sample, predicted from its image, its text or its pair of texts."""

from __future__ import annotations

from optin_cli.data.images.samples import ImageSamples
from optin_cli.data.labels import label_ids
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import (
    Prediction,
    Trial,
    constants_of,
    distributions,
    encoded,
    predict_plain,
    run_model,
)
from optin_cli.tasks.schema import Task


def predict_labels(trial: Trial) -> Prediction:
    """Predict labels; with those of the samples, measure them."""
    checkpoint, samples, task = trial.checkpoint, trial.samples, trial.task
    if task is None or samples.labels is None:
        return predict_plain(trial)
    outcome = run_model(checkpoint, encoded(trial, labelled=True), trial.progress)
    labels, (logits, *_) = outcome.labels, outcome.outputs
    if labels is None:
        return predict_plain(trial)
    positive = _positive(trial, task)
    values = metrics.score_metrics(task.metrics, logits, labels, checkpoint.num_labels, positive=positive)
    first = task.metrics[0]
    error = metrics.standard_error(first, values[first], logits, labels, positive=positive)
    return Prediction(distributions(trial, outcome.outputs), outcome.keys, values, error, constants_of(trial))


def _positive(trial: Trial, task: Task) -> int:
    """The model's id of the class that F1 of two classes counts."""
    if isinstance(trial.samples, ImageSamples):
        return 1
    return int((label_ids(trial.samples, task, trial.checkpoint.config) or {}).get(1, 1))
