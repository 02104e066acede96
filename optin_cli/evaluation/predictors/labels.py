"""Classification and regression: labels of a sample, predicted from its image, its text or its pair of texts."""

import torch

from optin_cli.data.labels import known_classes
from optin_cli.data.load import require_texts
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial, distributions, encoded, read_options, run_model
from optin_cli.evaluation.resampling import metric_at, standard_error

MOST_NAMES = 8
"""How many classes a note names."""


def predict_labels(trial: Trial) -> Prediction:
    """Run the model on the samples as they are; with a task and labels of the samples, measure what it predicts."""
    checkpoint, samples, task = trial.checkpoint, trial.samples, trial.task
    outcome = run_model(checkpoint, encoded(trial, labelled=task is not None and samples.labelled), trial.progress)
    values: dict[str, float] = {}
    error = at = None
    notes: tuple[str, ...] = ()
    if task is not None and outcome.labels is not None:
        labels, logits, positive = outcome.labels, outcome.outputs[0], checkpoint.input.positive_class(samples, task)
        values = metrics.score_metrics(task.metrics, logits, labels, checkpoint.blueprint.num_labels, positive=positive)
        first = task.metrics[0]
        error = standard_error(first, values[first], logits, labels, positive=positive)
        at = metric_at(first, logits, labels, positive=positive)
        notes = _doubts(trial, logits, labels) if task.kind == "classification" else ()
    return Prediction(
        distributions(trial, outcome),
        outcome.keys,
        values,
        error,
        read_options(trial),
        truncated=outcome.truncated,
        notes=notes,
        at=at,
    )


def _doubts(trial: Trial, logits: torch.Tensor, labels: torch.Tensor) -> tuple[str, ...]:
    """What an accuracy below that of guessing may come from."""
    found = metrics.below_chance(logits, labels)
    if found is None:
        return ()
    classes, task = trial.checkpoint.blueprint.label_names or (), trial.task
    named = (
        f", {', '.join(f'{number} = {name}' for number, name in enumerate(classes[:MOST_NAMES]))}" if classes else ""
    )
    advice = "Write the labels as class names, which are matched by name."
    if trial.checkpoint.input.kind == "text" and task is not None and task.label_names is not None:
        known = known_classes(require_texts(trial.samples), task, trial.checkpoint.blueprint.config)
        if known.renamed:
            advice = (
                f"Numbers were read in the order of {task.name}; if they are the model's own, pass --task {task.kind}."
            )
    return (
        f"The accuracy of {trial.checkpoint.name}, {found:.4f}, is below chance (1 / {logits.shape[-1]}): the data may "
        f"number its labels in another order than the model its classes{named}. {advice}",
    )
