"""Models that continue a text: perplexity of running text in windows, and of the last word of passages.

Logits are computed for some tokens at a time (`model.readout`) and let go. A comparison with another model computes
those of the first windows again, side by side, from the last hidden states, which are kept until then.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from typing_extensions import Self

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.load import require_texts
from optin_cli.data.text.running import NOT_COUNTED, RunningText, Window, surroundings, window_batches
from optin_cli.errors import DataError
from optin_cli.evaluation.perplexity import perplexity, perplexity_at
from optin_cli.evaluation.predict import Prediction, Trial, encoded, over_batches, require_finite
from optin_cli.evaluation.resampling import mean_at
from optin_cli.model.forward import call_model
from optin_cli.model.readout import MOST, Readout, read_out, reads_tokens
from optin_cli.options.common import DEFAULT_WINDOW

COMPARED = 64
"""Windows, or passages, at which the distributions of two models are compared."""
KEPT = 2**29
"""Most bytes of hidden states that are kept; beyond, the model runs again."""


@dataclass(frozen=True)
class Guesses:
    """What a model makes of the tokens of W windows: summed -log p (W,) float64, tokens and right guesses (W,)."""

    losses: torch.Tensor
    counts: torch.Tensor
    right: torch.Tensor

    @classmethod
    def zeros(cls, windows: int) -> Self:
        """Of no tokens yet."""
        counts, right = (torch.zeros(windows, dtype=torch.int64) for _ in range(2))
        return cls(torch.zeros(windows, dtype=torch.float64), counts, right)


@dataclass(frozen=True)
class States:
    """What gives logits of a checkpoint's batches at the tokens that count, part by part.

    first: the batches at which models are compared. kept: the last hidden states of those, by the samples of the batch,
    as far as they fit; none unless the logits are wanted twice.
    """

    checkpoint: Checkpoint
    first: Sequence[Batch]
    wanted_twice: bool
    kept: dict[tuple[int, ...], Readout] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: Trial, batches: Sequence[Batch]) -> Self:
        """Of the batches of a trial, nothing of which is known yet."""
        begins = itertools.accumulate((batch.size for batch in batches), initial=0)
        first = [batch for batch, begin in zip(batches, begins, strict=False) if begin < COMPARED]
        return cls(trial.checkpoint, first, trial.compared)

    def logits(self, batch: Batch, places: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits (tokens, vocabulary) float32 at the places, part by part (DataError if they are not finite)."""
        structure = self.checkpoint.structure
        output = structure.outputs[0].name
        if reads_tokens(structure):
            parts = self._read(batch, places).parts()
        else:
            whole = call_model(self.checkpoint.model, batch.inputs)[output]
            parts = iter(torch.split(whole[places].float(), max(1, MOST // whole.shape[-1])))
        for logits in parts:
            require_finite(logits, output)
            yield logits

    def _read(self, batch: Batch, places: torch.Tensor) -> Readout:
        samples = tuple(batch.rows)
        if (known := self.kept.get(samples)) is not None:
            return known
        found = read_out(self.checkpoint.model, self.checkpoint.structure, batch).only(places)
        held = sum(one.hidden.nbytes for one in self.kept.values())
        compared = any(tuple(one.rows) == samples for one in self.first)
        if self.wanted_twice and compared and held + found.hidden.nbytes <= KEPT:
            self.kept[samples] = found
        return found

    @torch.inference_mode()
    def stream(self) -> Iterator[torch.Tensor]:
        """Logits at which models are compared, some tokens at a time."""
        for batch in self.first:
            yield from self.logits(batch, _wanted(batch)[0])


def predict_next(trial: Trial) -> Prediction:
    """Predict every token of running text that counts; with a task, measure the guesses."""
    text = require_texts(trial.samples)
    if not isinstance(text, RunningText):
        raise DataError(f"{text.name} is no running text.", hint="Pass it as such: --task causal-lm --data PATH.")
    batches = encoded(trial, labelled=True)
    states = States.of(trial, batches)
    values: dict[str, float] = {}
    error = tokens = at = None
    if trial.task is not None:
        found = guess(trial, batches, states)
        tokens = int(found.counts.sum())
        if not tokens:
            raise DataError(
                f"{text.name} has no token that another precedes.", hint="Pass running text of several words."
            )
        value, error = perplexity(found.losses, found.counts)
        measured = {"perplexity": value, "accuracy": int(found.right.sum()) / tokens}
        values = {name: measured[name] for name in trial.task.metrics}
        at = perplexity_at(found.losses, found.counts)
    cutting = text.cutting
    return Prediction(
        [],
        [key for batch in batches for key in batch.keys],
        values,
        error,
        {"max_length": cutting.length, "stride": cutting.stride, "compared_windows": COMPARED},
        stream=states.stream,
        tokens=tokens,
        at=at,
    )


def predict_last_words(trial: Trial) -> Prediction:
    """Predict the last word of every passage, as LAMBADA has it: right if each of its tokens is the likeliest.

    Passages are cut at their beginning to what the model holds. Perplexity is of words, not tokens.
    """
    checkpoint, samples, task = trial.checkpoint, require_texts(trial.samples), trial.task
    assert task is not None
    takes, tokenizer = checkpoint.input, checkpoint.input.tokenizer()
    length = takes.length(trial.options.max_length or trial.options.seq_len) or DEFAULT_WINDOW
    passages = ["\n".join(texts) for texts in samples.texts]
    windows = [last_word(passage, tokenizer, length, f"Passage {n}") for n, passage in enumerate(passages, 1)]
    size = takes.rows_at_once(trial.options.batch_size, length)
    batches = takes.fit(window_batches(windows, batch_size=size, labelled=True), tokenizer)
    states = States.of(trial, batches)
    found = guess(trial, batches, states)
    value, _ = perplexity(found.losses, torch.ones_like(found.counts))
    hits = (found.right == found.counts).double()
    accuracy = float(hits.mean())
    measured = {"last_word_accuracy": accuracy, "last_word_perplexity": value}
    return Prediction(
        [],
        [key for batch in batches for key in batch.keys],
        {name: measured[name] for name in task.metrics},
        math.sqrt(accuracy * (1 - accuracy) / len(windows)),
        {"max_length": length, "compared_windows": COMPARED},
        stream=states.stream,
        tokens=int(found.counts.sum()),
        at=mean_at(hits),
    )


def last_word(passage: str, tokenizer: Any, length: int, place: str) -> Window:
    """The last `length` tokens of a passage, of which those of its last word count (DataError without a word before).

    place: what a message calls it.
    """
    before, _, word = passage.rstrip().rpartition(" ")
    if not before.strip():
        raise DataError(f"{place} has no last word with another before it: {passage!r:.60}.")
    begin, _ = surroundings(tokenizer)
    known, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, f"{before} {word}"))
    ids = [*begin, *whole[len(begin) - length :]]
    labels = [NOT_COUNTED] * len(ids)
    own = max(len(whole) - len(known), 1)
    labels[-own:] = ids[-own:]
    return Window(torch.tensor(ids), torch.tensor(labels))


def guess(trial: Trial, batches: Sequence[Batch], states: States) -> Guesses:
    """Measure a model's distributions at the tokens before those that count."""

    def run(batch: Batch) -> Guesses:
        found = Guesses.zeros(batch.size)
        places, truth = _wanted(batch)
        owners = torch.arange(batch.size).repeat_interleave(places.sum(dim=1).cpu())
        done = 0
        for logits in states.logits(batch, places):
            part = slice(done, done + len(logits))
            done += len(logits)
            each = F.cross_entropy(logits, truth[part], reduction="none").double().cpu()
            found.losses.index_add_(0, owners[part], each)
            hits = (logits.argmax(dim=-1) == truth[part]).cpu()
            found.right.index_add_(0, owners[part], hits.long())
        found.counts.index_add_(0, owners, torch.ones_like(owners))
        return found

    parts = over_batches(trial.checkpoint, batches, run, trial.progress)
    whole = Guesses.zeros(sum(batch.size for batch in batches))
    for batch, part in zip(batches, parts, strict=True):
        for name, found in vars(part).items():
            getattr(whole, name)[list(batch.rows)] = found
    return whole


def _wanted(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Where tokens are predicted from, (B, T) bool, and these tokens, row by row."""
    assert batch.labels is not None
    places = torch.zeros_like(batch.labels, dtype=torch.bool)
    places[:, :-1] = batch.labels[:, 1:] != NOT_COUNTED
    return places, batch.labels[:, 1:][places[:, :-1]]
