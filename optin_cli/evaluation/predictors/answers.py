"""Question answering: the best span of the context over all windows of it, or no answer.

A window's score for "no answer" is what its logits give to the first token ([CLS]); a question has none if its
lowest such score exceeds the best span's by more than a threshold (as in BERT's evaluation of SQuAD 2).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F

from optin_cli.data.batch import Batch
from optin_cli.data.load import require_texts
from optin_cli.data.text.tokenize import cut_batches, usable_length
from optin_cli.data.text.windows import Windows, cut_windows
from optin_cli.errors import DataError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial, distributions, require_pairs, run_model
from optin_cli.evaluation.resampling import mean_at
from optin_cli.options.evaluation import DEFAULT_QUESTION_WINDOW, AnswerOptions


def predict_answers(trial: Trial) -> Prediction:
    """Answer every question; with accepted answers, measure those given."""
    checkpoint, samples, task = trial.checkpoint, require_texts(trial.samples), trial.task
    chosen = trial.options.answers
    assert task is not None
    require_pairs(trial, task)
    tokenizer = checkpoint.input.tokenizer()
    length = usable_length(tokenizer, checkpoint.input.most, trial.options.max_length, default=DEFAULT_QUESTION_WINDOW)
    questions, contexts = (list(column) for column in zip(*samples.texts, strict=True))
    windows = cut_windows(questions, contexts, tokenizer, max_length=length, stride=chosen.doc_stride)
    found = cut_batches(windows.fields, tokenizer, batch_size=trial.options.batch_size)
    batches = checkpoint.input.fit(found, tokenizer)
    outcome = run_model(checkpoint, batches, trial.progress)
    values: dict[str, float] = {}
    error = at = None
    if samples.answers is not None:
        unanswerable = () in samples.answers if task.unanswerable is None else task.unanswerable
        given = decode_answers(contexts, windows, batches, *outcome.outputs, options=chosen, unanswerable=unanswerable)
        scores = metrics.answer_scores(task.metrics, given, samples.answers)
        (values, error), at = metrics.mean_scores(scores), mean_at(scores[task.metrics[0]])
    constants = {"max_length": length, **asdict(chosen)}
    return Prediction(distributions(trial, outcome), outcome.keys, values, error, constants, at=at)


def decode_answers(
    contexts: Sequence[str],
    windows: Windows,
    batches: Sequence[Batch],
    start: torch.Tensor,
    end: torch.Tensor,
    *,
    options: AnswerOptions,
    unanswerable: bool,
) -> list[str]:
    """The answer of every sample as its context spells it, "" for none (DataError if a logit is not finite).

    batches: the windows in batches, whose rows are the numbers of the windows. start, end: (W, tokens), in their order.
    """
    broken = int((~(start.isfinite() & end.isfinite())).any(dim=-1).sum())
    if broken:
        raise DataError(
            f"The model put out NaN or infinity for {broken} of {len(start)} windows.",
            hint="Check its weights, or run it in float32.",
        )
    texts = [""] * len(contexts)
    best = [-math.inf] * len(contexts)
    null = [math.inf] * len(contexts)
    done = 0
    for batch in batches:
        real = batch.token_mask.cpu()
        here = slice(done, done + batch.size)
        done += batch.size
        starts, ends = start[here, : real.shape[1]], end[here, : real.shape[1]]
        # Padding may lie on either side: what is known per real token is laid out as the mask is.
        allowed = torch.zeros_like(real)
        allowed[real] = torch.cat([windows.spans[row][:, 0] >= 0 for row in batch.rows])
        scores, firsts, lasts = best_spans(starts, ends, allowed, options.max_answer)
        offsets = real.long().argmax(dim=1)
        for place, row in enumerate(batch.rows):
            owner, shift, spans = windows.owners[row], int(offsets[place]), windows.spans[row]
            nothing = windows.nulls[row] + shift
            null[owner] = min(null[owner], float(starts[place, nothing] + ends[place, nothing]))
            if float(scores[place]) > best[owner]:
                best[owner] = float(scores[place])
                first, last = int(firsts[place]) - shift, int(lasts[place]) - shift
                texts[owner] = contexts[owner][int(spans[first, 0]) : int(spans[last, 1])]
    if not unanswerable:
        return texts
    limits = [score + options.no_answer_threshold for score in best]
    return ["" if n > limit else text for text, n, limit in zip(texts, null, limits, strict=True)]


def best_spans(
    start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The span of highest start + end logit among all of 1 to `longest` tokens that begin and end where allowed.

    start, end: (rows, tokens); allowed: the same, bool. Returns (scores, first, last), each (rows,), `last` inclusive;
    the score is -inf where nothing is allowed.
    """
    tokens = start.shape[1]
    starts, ends = (logits.masked_fill(~allowed, -torch.inf) for logits in (start, end))
    lengths = min(longest, tokens)
    scores = torch.stack(
        [F.pad(starts[:, : tokens - d] + ends[:, d:], (0, d), value=-torch.inf) for d in range(lengths)], dim=-1
    )
    best, place = scores.flatten(1).max(dim=1)
    first = place // lengths
    return best, first, first + place % lengths
