"""Classification and regression: one label per sample, predicted from its image, its text or its pair of texts."""

from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import (
    Prediction,
    Trial,
    distributions,
    encoded,
    predict_plain,
    run_model,
)


def predict_labels(trial: Trial) -> Prediction:
    """Predict labels; with those of the samples, measure them."""
    checkpoint, samples, task = trial.checkpoint, trial.samples, trial.task
    if task is None or samples.labels is None:
        return predict_plain(trial)
    outcome = run_model(checkpoint, encoded(trial, labelled=True), trial.progress)
    labels, (logits, *_) = outcome.labels, outcome.outputs
    if labels is None:
        return predict_plain(trial)
    positive = checkpoint.input.positive_class(samples, task)
    values = metrics.score_metrics(task.metrics, logits, labels, checkpoint.blueprint.num_labels, positive=positive)
    first = task.metrics[0]
    error = metrics.standard_error(first, values[first], logits, labels, positive=positive)
    return Prediction(distributions(trial, outcome.outputs), outcome.keys, values, error, samples.constants)
