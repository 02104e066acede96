"""Classification and regression: one label a sample, predicted from its text or pair of texts."""

from __future__ import annotations

import torch

from optin_cli import metrics
from optin_cli.data import label_ids
from optin_cli.evaluating.trial import (
    Prediction,
    Trial,
    distributions,
    encoded,
    keys_of,
    predict,
    predict_plain,
    require_fit,
)


def predict_labels(trial: Trial) -> Prediction:
    """Predict labels; with those of the samples, measure them."""
    checkpoint, samples, task = trial.checkpoint, trial.samples, trial.task
    if task is None or samples.labels is None:
        return predict_plain(trial)
    require_fit(trial, task)
    batches = encoded(trial, labelled=True)
    outputs = predict(checkpoint, batches, trial.tell)
    labels = torch.cat([b.labels.cpu() for b in batches if b.labels is not None])
    positive = int((label_ids(samples, task, checkpoint.config) or {}).get(1, 1))
    values = metrics.score_metrics(task.metrics, outputs[0], labels, checkpoint.config.num_labels, positive=positive)
    first = task.metrics[0]
    error = metrics.standard_error(first, values[first], outputs[0], labels, positive=positive)
    return Prediction(distributions(trial, outputs), keys_of(batches), values, error)
