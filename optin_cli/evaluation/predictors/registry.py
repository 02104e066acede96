"""Predict and measure as the kind of task demands: each kind is one module and one row of the table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from optin_cli.architectures.schema import Purpose
from optin_cli.checkpoints.checks import require_fit
from optin_cli.evaluation.predict import Prediction, Trial
from optin_cli.evaluation.predictors.answers import predict_answers
from optin_cli.evaluation.predictors.labels import predict_labels
from optin_cli.evaluation.predictors.maps import predict_maps
from optin_cli.evaluation.predictors.next_tokens import predict_last_words, predict_next
from optin_cli.evaluation.predictors.searches import predict_searches
from optin_cli.evaluation.predictors.similarity import predict_similarity
from optin_cli.evaluation.predictors.tags import predict_tags
from optin_cli.evaluation.predictors.vocabulary import predict_masked
from optin_cli.tasks.schema import Kind

PREDICTORS: Mapping[Kind, Callable[[Trial], Prediction]] = MappingProxyType(
    {
        "classification": predict_labels,
        "multi-label": predict_labels,
        "regression": predict_labels,
        "token-classification": predict_tags,
        "similarity": predict_similarity,
        "retrieval": predict_searches,
        "reranking": predict_searches,
        "question-answering": predict_answers,
        "semantic-segmentation": predict_maps,
        "fill-mask": predict_masked,
        "next-token-prediction": predict_next,
        "last-word": predict_last_words,
    }
)
WITHOUT_TASK: Mapping[Purpose, Callable[[Trial], Prediction]] = MappingProxyType(
    {
        "semantic-segmentation": predict_maps,
        "fill-mask": predict_masked,
        "next-token-prediction": predict_next,
    }
)
"""Where outputs alone are compared, what models of a purpose need other than their outputs as they are."""


def run_trial(trial: Trial) -> Prediction:
    """Predict as the task's kind demands, or run the model as it is without one (DataError if the task is unfit)."""
    if trial.task is None:
        return WITHOUT_TASK.get(trial.checkpoint.blueprint.purpose, predict_labels)(trial)
    require_fit(trial.checkpoint, trial.task)
    return PREDICTORS[trial.task.kind](trial)
