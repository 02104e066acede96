"""Masked models of language, which put out a distribution over the vocabulary for every token.

Distributions of all tokens would not fit in memory. Each batch is measured and let go; a comparison with another
model goes through the batches of both again, side by side.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.load import require_texts
from optin_cli.data.text.masked import MaskedBatch, Masking, cut_texts
from optin_cli.data.text.tokenize import cut_batches, usable_length
from optin_cli.errors import DataError
from optin_cli.evaluation.perplexity import perplexity, perplexity_at
from optin_cli.evaluation.predict import Prediction, Trial, over_batches, require_finite
from optin_cli.evaluation.resampling import MetricAt
from optin_cli.model.forward import call_model


@dataclass(frozen=True)
class Blanks:
    """Texts cut into rows, in batches, and how their tokens are masked. owners: the text of each row."""

    batches: Sequence[Batch]
    masking: Masking
    owners: torch.Tensor

    def turns(self) -> Iterator[MaskedBatch]:
        """Every batch with every token masked once."""
        for batch in self.batches:
            yield from self.masking.turns(batch)


def predict_masked(trial: Trial) -> Prediction:
    """Fill in every token of every text, with one in `mask_every` masked at once; with a task, measure the guesses.

    Two texts of a sample are texts of their own. Long ones are cut into several rows rather than short.
    """
    checkpoint, samples, options = trial.checkpoint, require_texts(trial.samples), trial.options
    tokenizer = checkpoint.input.tokenizer()
    length = usable_length(tokenizer, checkpoint.input.most, options.max_length)
    rows, owners = cut_texts([text for texts in samples.texts for text in texts], tokenizer, max_length=length)
    size = checkpoint.input.rows_at_once(options.batch_size, length)
    batches = checkpoint.input.fit(cut_batches(rows, tokenizer, batch_size=size), tokenizer)
    blanks = Blanks(batches, Masking.of(tokenizer, options.mask_every), owners // len(samples.texts[0]))
    values: dict[str, float] = {}
    error = at = None
    if trial.task is not None:
        values, error, at = _measured(trial, blanks)
        values = {name: values[name] for name in trial.task.metrics}
    return Prediction(
        [],
        [key for batch in batches for key in batch.keys],
        values,
        error,
        {"max_length": length, "mask_every": options.mask_every},
        stream=functools.partial(_filled, checkpoint, blanks),
        at=at,
    )


@torch.inference_mode()
def _measured(trial: Trial, blanks: Blanks) -> tuple[dict[str, float], float | None, MetricAt]:
    """Pseudo-perplexity and accuracy over all tokens, the standard error of the former, and it over some texts."""
    losses = torch.zeros(len(trial.samples), dtype=torch.float64)
    counts = torch.zeros(len(trial.samples), dtype=torch.long)
    right = 0

    def guess(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        found = []
        for turn in blanks.masking.turns(batch):
            logits = _guesses(trial.checkpoint, turn)
            each = F.cross_entropy(logits, turn.answers, reduction="none").double().cpu()
            found.append((blanks.owners[turn.owners], each, (logits.argmax(dim=-1) == turn.answers).sum().cpu()))
        return found

    for turns in over_batches(trial.checkpoint, blanks.batches, guess, trial.progress):
        for texts, each, hits in turns:
            losses.index_add_(0, texts, each)
            counts += torch.bincount(texts, minlength=len(counts))
            right += int(hits)
    tokens = int(counts.sum())
    if not tokens:
        raise DataError(
            f"{trial.samples.name} has no token to mask: its texts are empty, or hold special tokens alone.",
            hint="Pass running text that the tokenizer knows the words of.",
        )
    value, error = perplexity(losses, counts)
    return {"pseudo_perplexity": value, "accuracy": right / tokens}, error, perplexity_at(losses, counts)


def _filled(checkpoint: Checkpoint, blanks: Blanks) -> Iterator[torch.Tensor]:
    """Logits at masked tokens, (tokens, vocabulary) a batch."""
    return map(functools.partial(_guesses, checkpoint), blanks.turns())


def _guesses(checkpoint: Checkpoint, turn: MaskedBatch) -> torch.Tensor:
    return _logits(checkpoint, turn.batch, turn.places)


@torch.inference_mode()
def _logits(checkpoint: Checkpoint, batch: Batch, places: torch.Tensor) -> torch.Tensor:
    """The first output at some tokens, (tokens, vocabulary) float32 (DataError if it is not finite)."""
    output = checkpoint.structure.outputs[0].name
    found = call_model(checkpoint.model, batch.inputs)[output][places].float()
    require_finite(found, output)
    return found
