"""Token classification: a class for every word, that of its first token."""

from collections.abc import Sequence

import torch

from optin_cli.data.batch import Batch
from optin_cli.data.labels import tag_ids
from optin_cli.data.load import require_texts
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.tokenize import cut_batches, encode, usable_length
from optin_cli.errors import CheckpointError, DataError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.entities import count_entities, mark_entities
from optin_cli.evaluation.predict import Outcome, Prediction, Trial, distributions, run_model
from optin_cli.evaluation.resampling import counted_at

IGNORED = -100
"""The label that PyTorch's losses pass over, which data sets give to words that do not count."""


def predict_tags(trial: Trial) -> Prediction:
    """Tag every word; with labels, measure the tags and the entities that they mark.

    Words that are cut off, or of which the tokenizer makes no token, have no tag and do not count.
    """
    checkpoint, samples, task = trial.checkpoint, require_texts(trial.samples), trial.task
    assert task is not None
    if samples.words is None:
        raise DataError(
            f"{samples.name} has no rows of words, which {task.name} tags.",
            hint="Name the column of words with --text-columns.",
        )
    tokenizer = checkpoint.input.tokenizer(words=True)
    length = usable_length(tokenizer, checkpoint.input.most, trial.options.max_length)
    found = encode(samples, tokenizer, length)
    if not found.words:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name} does not say which word a token is of.",
            hint="Save it as a fast tokenizer: tokenizer.json.",
        )
    batches = checkpoint.input.fit(cut_batches(found.rows, tokenizer, batch_size=trial.options.batch_size), tokenizer)
    outcome = run_model(checkpoint, batches, trial.progress)
    values: dict[str, float] = {}
    error = at = None
    truth = tag_ids(samples, task, checkpoint.blueprint.config, {IGNORED, *(trial.options.ignore_index or ())})
    if truth is not None:
        _require_finite(outcome)
        names = _class_names(trial, samples)
        entities = mark_entities(names)
        tags = word_classes(outcome.outputs[0], batches, found.words)
        counts = []
        for mine, theirs in zip(tags, truth, strict=True):
            pairs = [(tag, label) for word, tag in mine.items() if (label := theirs[word]) is not None]
            here, there = ([names[pair[side]] for pair in pairs] for side in range(2))
            counts.append(count_entities(here, there, entities=entities))
        values, error = metrics.score_tags(task.metrics, torch.tensor(counts), entities=entities)
        at = counted_at(next(iter(values)), torch.tensor(counts)) if values else None
    return Prediction(
        distributions(trial, outcome),
        outcome.keys,
        values,
        error,
        {**samples.constants, "max_length": length},
        truncated=sum(found.truncated),
        at=at,
    )


def word_classes(
    logits: torch.Tensor, batches: Sequence[Batch], words: Sequence[Sequence[int | None]]
) -> list[dict[int, int]]:
    """The class of the first token of every word of each sample, by the word's number.

    logits: (tokens, classes) of all real tokens of the batches, in order. words: the word of each token of a sample.
    """
    tags: list[dict[int, int]] = [{} for _ in words]
    classes, done = logits.argmax(dim=-1).tolist(), 0
    for batch in batches:
        for row in batch.rows:
            for token, word in enumerate(words[row]):
                if word is not None:
                    tags[row].setdefault(word, classes[done + token])
            done += len(words[row])
    return tags


def _class_names(trial: Trial, samples: Samples) -> Sequence[str]:
    """The model's names of its classes; the data's, in its order, where the model only numbers them."""
    blueprint = trial.checkpoint.blueprint
    names = blueprint.label_names or tuple(f"LABEL_{number}" for number in range(blueprint.num_labels))
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    if numbered and samples.label_names is not None and len(samples.label_names) == len(names):
        return samples.label_names
    return names


def _require_finite(outcome: Outcome) -> None:
    broken = int((~outcome.outputs[0].isfinite()).any(dim=-1).sum())
    if broken:
        raise DataError(
            f"The model put out NaN or infinity for {broken} of {len(outcome.outputs[0])} tokens.",
            hint="Check its weights, or run it in float32.",
        )
