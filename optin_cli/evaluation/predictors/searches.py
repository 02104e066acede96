"""Retrieval and reranking: documents ranked for queries, by their embeddings or by a model that reads both at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.sentences import DOCUMENT, QUERY
from optin_cli.data.batch import Batch
from optin_cli.data.load import require_searches
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.searches import Searches
from optin_cli.errors import CheckpointError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial, encoded, over_batches
from optin_cli.evaluation.predictors.similarity import embed
from optin_cli.evaluation.resampling import mean_at
from optin_cli.model.forward import call_model
from optin_cli.progress import SILENT, Progress

Scores = tuple[list[str], Iterator[torch.Tensor]]
"""Keys of what was read, and for each query the scores of the documents that it ranks, (N,)."""
SIMILARITIES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "cosine": lambda query, documents: F.cosine_similarity(query[None], documents),
        "dot": lambda query, documents: documents @ query,
        "euclidean": lambda query, documents: -torch.linalg.vector_norm(documents - query, dim=1),
        "manhattan": lambda query, documents: -torch.linalg.vector_norm(documents - query, ord=1, dim=1),
    }
)
"""How alike the embeddings of a query (width,) and of documents (N, width) are, by sentence-transformers' names."""


def predict_searches(trial: Trial) -> Prediction:
    """Score the documents that each query ranks, and measure the ranking."""
    searches, task = require_searches(trial.samples), trial.task
    assert task is not None
    together = trial.checkpoint.blueprint.purpose == "regression"
    keys, scores = (score_pairs if together else score_embeddings)(trial, searches)
    each = metrics.search_scores(task.metrics, zip(scores, _relevances(searches), strict=True))
    values, error = metrics.mean_scores(each)
    return Prediction([], keys, values, error, at=mean_at(each[task.metrics[0]]))


def score_embeddings(trial: Trial, searches: Searches) -> Scores:
    """Embed queries and documents, each with its prompt, and compare them as the model wants it."""
    sentences = trial.checkpoint.blueprint.sentences
    name = "cosine" if sentences is None else sentences.similarity
    if name not in SIMILARITIES:
        raise CheckpointError(
            f"{trial.checkpoint.name} compares embeddings by {name!r}; expected one of {', '.join(SIMILARITIES)}."
        )
    parts = ((searches.texts, QUERY), ([(text,) for text in searches.documents], DOCUMENT))
    batches = [
        encoded(replace(trial, samples=_unlabelled(searches, texts)), labelled=False, prompt=prompt)
        for texts, prompt in parts
    ]
    queries, documents = (embed(trial.checkpoint, each, trial.progress) for each in batches)

    def scores() -> Iterator[torch.Tensor]:
        for number, query in enumerate(queries):
            ranked = documents if searches.candidates is None else documents[searches.candidates[number]]
            yield SIMILARITIES[name](query, ranked)

    return [key for each in batches for batch in each for key in batch.keys], scores()


def score_pairs(trial: Trial, searches: Searches) -> Scores:
    """Read every query together with each of its candidates; the one number that the model puts out is the score."""
    ranked = _ranked(searches)
    asked = zip(searches.texts, ranked, strict=True)
    pairs = [(*query, searches.documents[number]) for query, numbers in asked for number in numbers]
    batches = encoded(replace(trial, samples=_unlabelled(searches, pairs)), labelled=False)
    found = first_outputs(trial.checkpoint, batches, trial.progress)
    return [key for batch in batches for key in batch.keys], iter(
        torch.split(found, [len(numbers) for numbers in ranked])
    )


@torch.inference_mode()
def first_outputs(checkpoint: Checkpoint, batches: Sequence[Batch], progress: Progress = SILENT) -> torch.Tensor:
    """The one number that a model puts out for every sample, (N,) on the CPU, in the samples' order."""
    rule, found = checkpoint.structure.outputs[0], torch.zeros(sum(batch.size for batch in batches))

    def run(batch: Batch) -> torch.Tensor:
        return call_model(checkpoint.model, batch.inputs)[rule.name].float().squeeze(-1).cpu()

    for batch, part in zip(batches, over_batches(checkpoint, batches, run, progress), strict=True):
        found[list(batch.rows)] = part
    return found


def _unlabelled(searches: Searches, texts: Sequence[tuple[str, ...]]) -> Samples:
    return Samples(searches.name, searches.split, list(texts), None, None, searches.sha256, len(texts))


def _ranked(searches: Searches) -> Sequence[Sequence[int]]:
    """Numbers of the documents that each query ranks."""
    everything = range(len(searches.documents))
    return searches.candidates or [everything] * len(searches)


def _relevances(searches: Searches) -> Iterator[torch.Tensor]:
    """How relevant the documents are that each query ranks, (N,) int64."""
    for grades, numbers in zip(searches.relevant, _ranked(searches), strict=True):
        yield torch.tensor([grades.get(number, 0) for number in numbers])
