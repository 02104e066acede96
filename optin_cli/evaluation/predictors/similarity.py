"""Sentence similarity: the cosine of two sentences' embeddings, each encoded alone.

A sentence's embedding is what its folder of sentence-transformers makes of it; for any other encoder it is the mean of
its last hidden states over real tokens, special ones included.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.labels import label_values
from optin_cli.data.load import require_texts
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial, encoded, over_batches, read_options, require_pairs
from optin_cli.evaluation.resampling import metric_at, standard_error
from optin_cli.model.forward import call_model, embed_hidden
from optin_cli.progress import SILENT, Progress


def predict_similarity(trial: Trial) -> Prediction:
    """Embed both texts of every sample; with labels, measure how their cosine follows them."""
    samples, task = require_texts(trial.samples), trial.task
    assert task is not None
    require_pairs(trial, task)
    labels = label_values(samples)
    alone = replace(samples, texts=[(texts[side],) for side in range(2) for texts in samples.texts], labels=None)
    batches = encoded(replace(trial, samples=alone), labelled=False)
    keys = [key for batch in batches for key in batch.keys]
    constants, truncated = read_options(trial), sum(batch.truncated for batch in batches)
    first, second = embed(trial.checkpoint, batches, trial.progress).chunk(2)
    cosine = F.cosine_similarity(first, second)
    if labels is None:
        return Prediction([], keys, constants=constants, truncated=truncated)
    truth = torch.tensor(labels)
    values = metrics.score_metrics(task.metrics, cosine, truth, num_labels=1)
    name = task.metrics[0]
    error = standard_error(name, values[name], cosine, truth)
    at = metric_at(name, cosine, truth)
    return Prediction([], keys, values, error, constants, truncated=truncated, at=at)


@torch.inference_mode()
def embed(checkpoint: Checkpoint, batches: Sequence[Batch], progress: Progress = SILENT) -> torch.Tensor:
    """Embedding of every sample, (N, width) on the CPU, in the samples' order."""
    rule = checkpoint.structure.outputs[0]
    embeddings: dict[int, torch.Tensor] = {}

    def run(batch: Batch) -> torch.Tensor:
        hidden = call_model(checkpoint.model, batch.inputs)[rule.name].float()
        return embed_hidden(hidden, checkpoint.structure, batch).cpu()

    for batch, found in zip(batches, over_batches(checkpoint, batches, run, progress), strict=True):
        embeddings.update(zip(batch.rows, found, strict=True))
    return torch.stack([embeddings[row] for row in range(len(embeddings))])
