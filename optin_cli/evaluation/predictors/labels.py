"""Classification and regression: one label per sample, predicted from its image, its text or its pair of texts."""

from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial, distributions, encoded, run_model


def predict_labels(trial: Trial) -> Prediction:
    """Run the model on the samples as they are; with a task and labels of the samples, measure what it predicts."""
    checkpoint, samples, task = trial.checkpoint, trial.samples, trial.task
    outcome = run_model(checkpoint, encoded(trial, labelled=task is not None and samples.labelled), trial.progress)
    values: dict[str, float] = {}
    error = None
    if task is not None and outcome.labels is not None:
        labels, logits, positive = outcome.labels, outcome.outputs[0], checkpoint.input.positive_class(samples, task)
        values = metrics.score_metrics(task.metrics, logits, labels, checkpoint.blueprint.num_labels, positive=positive)
        first = task.metrics[0]
        error = metrics.standard_error(first, values[first], logits, labels, positive=positive)
    return Prediction(distributions(trial, outcome), outcome.keys, values, error, samples.constants)
