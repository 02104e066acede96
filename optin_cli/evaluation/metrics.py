"""Task metrics, their standard errors, and distances between the outputs of two models.

Predictions are logits (N, C), or values (N,) or (N, 1) of a regression; labels are (N,). Label maps are measured by
counts of pixels, (N, 3, C): see `count_pixels`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F

from optin_cli.errors import DataError, did_you_mean

RESAMPLES = 200
SEED = 0


@dataclass(frozen=True)
class Metric:
    """A named score of predictions against labels."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class ValueMetric(Metric):
    """A score of logits or values.

    `compute` takes predictions (N, C) or (N,), labels (N,) and the positive class (for F1 of two classes).
    `spread` says that it is undefined where labels do not vary, and 0 where predictions do not; `fewest`
    that it says nothing with fewer classes.
    """

    compute: Callable[[torch.Tensor, torch.Tensor, int], float]
    spread: bool = False
    fewest: int = 1


@dataclass(frozen=True)
class MapMetric(Metric):
    """A score of label maps. `compute` takes counts of pixels (..., 3, C), float64, and returns (...)."""

    compute: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MapScores:
    """Metrics of label maps in the order asked, the standard error of the first, and the IoU of each class.

    A class that neither labels nor predictions hold has no IoU.
    """

    values: dict[str, float]
    error: float | None
    class_iou: list[float | None]


@dataclass(frozen=True)
class AnswerMetric(Metric):
    """A score of an answer's text against the accepted ones; `key` is what torchmetrics calls it."""

    key: str


def score_metrics(
    names: Sequence[str], predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, *, positive: int = 1
) -> dict[str, float]:
    """Every named metric that is defined for that number of classes, in the order of `names`.

    num_labels: outputs of the model. positive: the model's id of the class that F1 counts, for two classes.

    Raises DataError: unknown metric, shapes that do not fit, non-finite predictions, or a correlation with labels that
    are all the same.
    """
    _check(predictions, labels, num_labels)
    chosen = {name: _value_metric(name) for name in names}
    return {
        name: _value(metric, predictions, labels, positive)
        for name, metric in chosen.items()
        if num_labels >= metric.fewest
    }


def score_answers(
    names: Sequence[str], predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[dict[str, float], float | None]:
    """Every named metric of answers, as SQuAD defines them, and the standard error of the first.

    Case, punctuation, articles and white space do not count; the best of the accepted answers does. Without
    any accepted answer the right one is no answer, "".

    Returns:
        values of 0 to 1, in the order of `names`; no error with a single answer.
    """
    from torchmetrics.functional.text import squad

    each = []
    for text, accepted in zip(predictions, answers, strict=True):
        target = {"answers": {"text": list(accepted) or [""]}, "id": ""}
        each.append(squad({"prediction_text": text, "id": ""}, target))
    scores = {
        name: torch.tensor([float(score[_answer_metric(name).key]) / 100 for score in each], dtype=torch.float64)
        for name in names
    }
    count = len(each)
    error = float(scores[names[0]].std()) / math.sqrt(count) if count > 1 else None
    return {name: float(values.mean()) for name, values in scores.items()}, error


def count_pixels(predicted: torch.Tensor, labels: torch.Tensor, classes: int, ignored: int) -> torch.Tensor:
    """What the metrics need of the confusion matrix of one image: (3, C) int64.

    They are its diagonal and margins: pixels of each class that are right, those labelled so, those predicted so.
    Pixels whose label is `ignored` count nowhere. predicted, labels: (height, width) classes.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    flat = (predicted.flatten().long(), labels.flatten().long())
    found = multiclass_confusion_matrix(*flat, num_classes=classes, ignore_index=ignored)
    return torch.stack([found.diagonal(), found.sum(dim=1), found.sum(dim=0)])


def score_maps(names: Sequence[str], counts: torch.Tensor) -> MapScores:
    """Every named metric over all pixels of N images, whose counts are (N, 3, C).

    The standard error is the spread over 200 bootstrap resamples of the images, drawn from a fixed seed.

    Raises DataError: unknown metric, or no pixel counts.
    """
    chosen = {name: _map_metric(name) for name in names}
    exact, images = counts.double(), len(counts)
    total = exact.sum(dim=0)
    if not bool(total[1].any()):
        raise DataError("Every pixel of the label maps is ignored.", hint="Name other ids with --ignore-index.")
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(images, (RESAMPLES, images), generator=generator)
    drawn = torch.zeros(RESAMPLES, images, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
    spread = chosen[names[0]].compute((drawn @ exact.flatten(1)).reshape(RESAMPLES, *total.shape))
    defined = spread[spread.isfinite()]
    return MapScores(
        {name: float(metric.compute(total)) for name, metric in chosen.items()},
        float(defined.std()) if images > 1 and len(defined) > 1 else None,
        [None if math.isnan(iou) else iou for iou in _ious(total).tolist()],
    )


def standard_error(
    name: str, value: float, predictions: torch.Tensor, labels: torch.Tensor, *, positive: int = 1
) -> float | None:
    """Standard error of a metric over the choice of samples.

    Binomial for accuracy and top-5; else the spread over 200 bootstrap resamples drawn from a fixed seed. None where no
    two resamples have a defined value.
    """
    count = len(labels)
    if name in ("accuracy", "top5"):
        return math.sqrt(max(value * (1 - value), 0.0) / count)
    metric = _value_metric(name)
    generator = torch.Generator().manual_seed(SEED)
    values = []
    for _ in range(RESAMPLES):
        rows = torch.randint(count, (count,), generator=generator).to(labels.device)
        drawn = labels[rows]
        if not (metric.spread and _constant(drawn)):
            values.append(_value(metric, predictions[rows], drawn, positive))
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None


def distances(logits: torch.Tensor, reference: torch.Tensor) -> tuple[float, float] | None:
    """How far outputs are from a reference: agreement and mean KL divergence; None for regression (DataError: shapes).

    Agreement is the share of samples (0 to 1) whose largest logit is the same class in both. The divergence is
    KL(reference || model) of the class distributions, in nats.
    """
    if logits.shape != reference.shape:
        raise DataError(
            f"The outputs of the two models differ in shape: {tuple(logits.shape)} and {tuple(reference.shape)}.",
            hint="Compare checkpoints of the same task.",
        )
    if logits.dim() == 1 or logits.shape[-1] == 1:
        return None
    p, q = (F.log_softmax(x.double(), dim=-1) for x in (reference, logits))
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    # Rounding can leave a sum a little below zero, which no divergence is.
    return float((_classes(logits) == _classes(reference)).double().mean()), max(divergence, 0.0)


def streamed_distances(logits: Iterable[torch.Tensor], reference: Iterable[torch.Tensor]) -> tuple[float, float]:
    """The same of outputs that come in parts (n, classes), of which one at a time is held."""
    same = divergence = 0.0
    count = 0
    for mine, theirs in zip(logits, reference, strict=True):
        agreement, kl = distances(mine, theirs) or (1.0, 0.0)
        same, divergence, count = same + agreement * len(mine), divergence + kl * len(mine), count + len(mine)
    return same / count, divergence / count


def find_metric(name: str) -> Metric:
    """The metric of that name (DataError if there is none)."""
    if name not in METRICS:
        raise DataError(f"There is no metric named {name!r}.", hint=did_you_mean(name, METRICS))
    return METRICS[name]


def _value_metric(name: str) -> ValueMetric:
    metric = find_metric(name)
    if not isinstance(metric, ValueMetric):
        raise DataError(f"The metric {name} scores answers, not numbers.")
    return metric


def _map_metric(name: str) -> MapMetric:
    metric = find_metric(name)
    if not isinstance(metric, MapMetric):
        raise DataError(f"The metric {name} does not score label maps.")
    return metric


def _answer_metric(name: str) -> AnswerMetric:
    metric = find_metric(name)
    if not isinstance(metric, AnswerMetric):
        raise DataError(f"The metric {name} scores numbers, not answers.")
    return metric


def _value(metric: ValueMetric, predictions: torch.Tensor, labels: torch.Tensor, positive: int) -> float:
    if metric.spread:
        if _constant(labels):
            raise DataError(
                f"{metric.name} has no value: all {len(labels)} labels are the same.",
                hint="Evaluate on more samples.",
            )
        # 0/0 as written; a model whose outputs are all the same says nothing about the labels.
        if _constant(_classes(predictions) if metric.name == "matthews" else _values(predictions)):
            return 0.0
    return metric.compute(predictions, labels, positive)


def _accuracy(predictions: torch.Tensor, labels: torch.Tensor, _: int, *, top: int = 1) -> float:
    """Share of samples whose label is among the `top` largest logits."""
    from torchmetrics.functional.classification import multiclass_accuracy

    classes = predictions.shape[-1]
    return float(multiclass_accuracy(predictions, labels, num_classes=classes, average="micro", top_k=top))


def _f1(predictions: torch.Tensor, labels: torch.Tensor, positive: int) -> float:
    """F1 of the positive class with two classes; the unweighted mean over classes with more."""
    from torchmetrics.functional.classification import binary_f1_score, multiclass_f1_score

    classes = predictions.shape[-1]
    if classes == 2:
        hits, truth = _classes(predictions) == positive, labels == positive
        return float(binary_f1_score(hits.long(), truth.long()))
    return float(multiclass_f1_score(_classes(predictions), labels, num_classes=classes, average="macro"))


def _matthews(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    return float(multiclass_matthews_corrcoef(_classes(predictions), labels, predictions.shape[-1]))


def _pearson(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    from torchmetrics.functional.regression import pearson_corrcoef

    return float(pearson_corrcoef(_standard(_values(predictions)), _standard(labels)))


def _spearman(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    from torchmetrics.functional.regression import spearman_corrcoef

    return float(spearman_corrcoef(_values(predictions).double(), labels.double()))


def _classes(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.argmax(dim=-1)


def _values(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.squeeze(-1) if predictions.dim() == 2 else predictions


def _standard(values: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit deviation, in float64: correlation is unchanged and small scales stay exact."""
    centred = values.double() - values.double().mean()
    return centred / centred.std()


def _constant(values: torch.Tensor) -> bool:
    return bool(values.min() == values.max())


def _ious(counts: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every class, (..., C); NaN for one that is nowhere."""
    right, labelled, predicted = counts.unbind(dim=-2)
    return right / (labelled + predicted - right)


def _mean_iou(counts: torch.Tensor) -> torch.Tensor:
    return _ious(counts).nanmean(dim=-1)


def _pixel_accuracy(counts: torch.Tensor) -> torch.Tensor:
    right, labelled, _ = counts.unbind(dim=-2)
    return right.sum(dim=-1) / labelled.sum(dim=-1)


def _check(predictions: torch.Tensor, labels: torch.Tensor, num_labels: int) -> None:
    shapes = [(len(labels), num_labels)] + ([(len(labels),)] if num_labels == 1 else [])
    if tuple(predictions.shape) not in shapes or not len(labels):
        raise DataError(
            f"Predictions have shape {tuple(predictions.shape)}; expected {shapes[0]} for {len(labels)} "
            f"labels and {num_labels} outputs."
        )
    broken = int((~predictions.isfinite()).reshape(len(labels), -1).any(dim=-1).sum())
    if broken:
        raise DataError(
            f"The model put out NaN or infinity for {broken} of {len(labels)} samples.",
            hint="Check its weights, or run it in float32.",
        )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            ValueMetric("accuracy", True, _accuracy),
            ValueMetric("top5", True, partial(_accuracy, top=5), fewest=6),
            ValueMetric("f1", True, _f1),
            ValueMetric("matthews", True, _matthews, spread=True),
            ValueMetric("pearson", True, _pearson, spread=True),
            ValueMetric("spearman", True, _spearman, spread=True),
            AnswerMetric("squad_em", True, "exact_match"),
            AnswerMetric("squad_f1", True, "f1"),
            MapMetric("mean_iou", True, _mean_iou),
            MapMetric("pixel_accuracy", True, _pixel_accuracy),
            Metric("pseudo_perplexity", False),
        )
    }
)
