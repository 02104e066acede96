"""Task metrics and their standard errors.

Predictions are logits (N, C), or values (N,) or (N, C) of a regression; labels are (N,), or (N, C) where each of C
outputs has its own. Label maps are measured by counts of pixels, (N, 3, C): see `count_pixels`; tagged words by counts
of entities and words, (N, 5): see `count_entities`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch

from optin_cli.errors import DataError, did_you_mean

NOT_FINITE = "The model put out NaN or infinity for {count}."
RESAMPLES = 200
SEED = 0
TOPS: Mapping[str, int] = MappingProxyType({"accuracy": 1, "top5": 5})
"""Metrics that are the share of samples whose label is among so many of the largest logits."""
RARE = 2.0
"""Standard errors that chance exceeds once in fifty times, on one side."""


@dataclass(frozen=True)
class Metric:
    """A named score of predictions against labels. relative: a drop is a share of the original's value."""

    name: str
    higher_is_better: bool
    relative: bool = field(default=False, kw_only=True)

    def drop(self, value: float, original: float) -> float:
        """How much worse a value is than the original's."""
        change = original - value if self.higher_is_better else value - original
        return change / original if self.relative else change


@dataclass(frozen=True)
class ValueMetric(Metric):
    """A score of logits or values.

    `compute` takes predictions (N, C) or (N,), labels (N,) or (N, C) and the positive class (for F1 of two classes).
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
class TagMetric(Metric):
    """A score of tagged words. `compute` takes counts (..., 5), float64, and returns (...).

    entities: whether it is defined only where tags mark where entities begin and go on.
    """

    compute: Callable[[torch.Tensor], torch.Tensor]
    entities: bool = True


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


@dataclass(frozen=True)
class SearchMetric(Metric):
    """A score of one query. `compute` takes scores of documents (N,) and how relevant each is, (N,) int64 from 0."""

    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


M = TypeVar("M", bound=Metric)


def score_metrics(
    names: Sequence[str], predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, *, positive: int = 1
) -> dict[str, float]:
    """Every named metric that is defined for that number of classes, in the order of `names`.

    num_labels: outputs of the model. positive: the model's id of the class that F1 counts, for two classes.

    Raises DataError: unknown metric, shapes that do not fit, non-finite predictions, or a correlation with labels that
    are all the same.
    """
    _check(predictions, labels, num_labels)
    chosen = {name: metric_as(ValueMetric, name, "scores answers, not numbers") for name in names}
    return {
        name: value_of(metric, predictions, labels, positive)
        for name, metric in chosen.items()
        if num_labels >= metric.fewest
    }


def score_answers(
    names: Sequence[str], predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[dict[str, float], float | None]:
    """Every named metric of answers, as SQuAD defines them, and the standard error of the first.

    Returns:
        values of 0 to 1, in the order of `names`; no error with a single answer.
    """
    return mean_scores(answer_scores(names, predictions, answers))


def mean_scores(scores: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], float | None]:
    """The mean of every metric over the scores of samples, (N,), and the standard error of the first, if N > 1."""
    first = next(iter(scores.values()))
    error = float(first.std()) / math.sqrt(len(first)) if len(first) > 1 else None
    return {name: float(values.mean()) for name, values in scores.items()}, error


def answer_scores(
    names: Sequence[str], predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, torch.Tensor]:
    """Every named metric of each answer, (N,) float64 of 0 to 1.

    Case, punctuation, articles and white space do not count; the best of the accepted answers does. Without
    any accepted answer the right one is no answer, "".
    """
    from torchmetrics.functional.text import squad

    each = []
    for text, accepted in zip(predictions, answers, strict=True):
        target = {"answers": {"text": list(accepted) or [""]}, "id": ""}
        each.append(squad({"prediction_text": text, "id": ""}, target))
    keys = {name: metric_as(AnswerMetric, name, "scores numbers, not answers").key for name in names}
    return {
        name: torch.tensor([float(score[key]) / 100 for score in each], dtype=torch.float64)
        for name, key in keys.items()
    }


def score_searches(
    names: Sequence[str], searches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[dict[str, float], float | None]:
    """The mean of every named metric over queries, in the order of `names`, and the standard error of the first.

    searches: as of `search_scores`, whose errors are raised.
    """
    return mean_scores(search_scores(names, searches))


def search_scores(
    names: Sequence[str], searches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Every named metric of each query, (N,) float64.

    searches: of each query the scores of the documents that it ranks, (N,), and how relevant each is, (N,) int64; at
    least one is. Raises DataError: unknown metric, or a score is not finite.
    """
    chosen = [metric_as(SearchMetric, name, "does not score rankings") for name in names]
    rows = []
    for scores, relevance in searches:
        if not bool(scores.isfinite().all()):
            raise DataError(NOT_FINITE.format(count="a query"), hint="Check its weights, or run it in float32.")
        # torchmetrics takes a score that is not above 0 for a document that was not found.
        places = torch.unique(scores, return_inverse=True)[1].double() + 1
        rows.append([float(metric.compute(places, relevance)) for metric in chosen])
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).unbind(dim=1), strict=True))


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
    chosen = {name: metric_as(MapMetric, name, "does not score label maps") for name in names}
    total = counts.double().sum(dim=0)
    if not bool(total[1].any()):
        raise DataError("Every pixel of the label maps is ignored.", hint="Name other ids with --ignore-index.")
    return MapScores(
        {name: float(metric.compute(total)) for name, metric in chosen.items()},
        _spread(chosen[names[0]].compute, counts),
        [None if math.isnan(iou) else iou for iou in _ious(total).tolist()],
    )


def score_tags(names: Sequence[str], counts: torch.Tensor, *, entities: bool) -> tuple[dict[str, float], float | None]:
    """Every named metric over all words of N samples, whose counts are (N, 5), and the standard error of the first.

    entities: whether tags mark where entities begin and go on; without, only metrics of words are defined. The standard
    error is that of `score_maps`, over samples.

    Raises DataError: unknown metric, or no word counts.
    """
    asked = {name: metric_as(TagMetric, name, "does not score tagged words") for name in names}
    chosen = {name: metric for name, metric in asked.items() if entities or not metric.entities}
    total = counts.double().sum(dim=0)
    if total[-1] == 0:
        raise DataError("No word has a label that counts.", hint="Name other ids with --ignore-index.")
    error = _spread(next(iter(chosen.values())).compute, counts) if chosen else None
    return {name: float(metric.compute(total)) for name, metric in chosen.items()}, error


def _spread(compute: Callable[[torch.Tensor], torch.Tensor], counts: torch.Tensor) -> float | None:
    """Standard deviation of a metric over bootstrap resamples of samples whose counts are (N, ...)."""
    exact, samples = counts.double(), len(counts)
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(samples, (RESAMPLES, samples), generator=generator)
    drawn = torch.zeros(RESAMPLES, samples, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
    spread = compute((drawn @ exact.flatten(1)).reshape(RESAMPLES, *exact.shape[1:]))
    defined = spread[spread.isfinite()]
    return float(defined.std()) if samples > 1 and len(defined) > 1 else None


def below_chance(predictions: torch.Tensor, labels: torch.Tensor) -> float | None:
    """The accuracy, where it is so far below that of guessing among all classes that chance hardly explains it.

    predictions: logits (N, C); labels: (N,). None where the accuracy is not `RARE` standard errors below 1 / C.
    """
    classes, count = predictions.shape[-1], len(labels)
    if classes < 2:
        return None
    accuracy, chance = float((_classes(predictions) == labels).double().mean()), 1 / classes
    return accuracy if accuracy < chance - RARE * math.sqrt(chance * (1 - chance) / count) else None


def find_metric(name: str) -> Metric:
    """The metric of that name (DataError if there is none)."""
    if name not in METRICS:
        raise DataError(f"There is no metric named {name!r}.", hint=did_you_mean(name, METRICS))
    return METRICS[name]


def metric_as(kind: type[M], name: str, otherwise: str) -> M:
    """The metric of that name, which must be of a kind. otherwise: what the message says of one that is not."""
    metric = find_metric(name)
    if not isinstance(metric, kind):
        raise DataError(f"The metric {name} {otherwise}.")
    return metric


def value_of(metric: ValueMetric, predictions: torch.Tensor, labels: torch.Tensor, positive: int) -> float:
    """A metric of predictions (DataError if all labels are the same and it then has no value)."""
    if metric.spread:
        if is_constant(labels):
            raise DataError(
                f"{metric.name} has no value: all {len(labels)} labels are the same.",
                hint="Evaluate on more samples.",
            )
        # 0/0 as written; a model whose outputs are all the same says nothing about the labels.
        if is_constant(_classes(predictions) if metric.name == "matthews" else _values(predictions)):
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


def _micro_f1(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    """F1 of all decisions, of every text on every class; a class is chosen above a probability of one half."""
    from torchmetrics.functional.classification import binary_f1_score

    return float(binary_f1_score((predictions > 0).long().flatten(), labels.long().flatten()))


def _macro_f1(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    """Mean of the F1 of each class, 0 for one that neither labels nor predictions hold."""
    each = [_micro_f1(predictions[:, place], labels[:, place], 1) for place in range(labels.shape[1])]
    return sum(each) / len(each)


def _mse(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    return float((_values(predictions).double() - labels.double()).square().mean())


def _pearson(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    from torchmetrics.functional.regression import pearson_corrcoef

    return float(pearson_corrcoef(_standard(_values(predictions)), _standard(labels)).mean())


def _spearman(predictions: torch.Tensor, labels: torch.Tensor, _: int) -> float:
    from torchmetrics.functional.regression import spearman_corrcoef

    return float(spearman_corrcoef(_values(predictions).double(), labels.double()).mean())


def _ndcg(scores: torch.Tensor, relevance: torch.Tensor, *, top: int) -> torch.Tensor:
    """Discounted gain of the best, relative to that of the right order; the gain is the relevance itself."""
    from torchmetrics.functional.retrieval import retrieval_normalized_dcg

    found: torch.Tensor = retrieval_normalized_dcg(scores, relevance, top_k=top)
    return found


def _recall(scores: torch.Tensor, relevance: torch.Tensor, *, top: int) -> torch.Tensor:
    from torchmetrics.functional.retrieval import retrieval_recall

    found: torch.Tensor = retrieval_recall(scores, relevance > 0, top_k=top)
    return found


def _reciprocal_rank(scores: torch.Tensor, relevance: torch.Tensor, *, top: int) -> torch.Tensor:
    from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

    found: torch.Tensor = retrieval_reciprocal_rank(scores, relevance > 0, top_k=top)
    return found


def _average_precision(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    from torchmetrics.functional.retrieval import retrieval_average_precision

    found: torch.Tensor = retrieval_average_precision(scores, relevance > 0)
    return found


def _classes(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.argmax(dim=-1)


def _values(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.squeeze(-1) if predictions.shape[1:] == (1,) else predictions


def _standard(values: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit deviation, in float64: correlation is unchanged and small scales stay exact."""
    centred = values.double() - values.double().mean(dim=0)
    return centred / centred.std(dim=0)


def is_constant(values: torch.Tensor) -> bool:
    """Whether the values, or any column of them, are all the same."""
    return bool((values.amin(dim=0) == values.amax(dim=0)).any())


def _ious(counts: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every class, (..., C); NaN for one that is nowhere."""
    right, labelled, predicted = counts.unbind(dim=-2)
    return right / (labelled + predicted - right)


def _mean_iou(counts: torch.Tensor) -> torch.Tensor:
    return _ious(counts).nanmean(dim=-1)


def _pixel_accuracy(counts: torch.Tensor) -> torch.Tensor:
    right, labelled, _ = counts.unbind(dim=-2)
    return right.sum(dim=-1) / labelled.sum(dim=-1)


def _entity_f1(counts: torch.Tensor) -> torch.Tensor:
    hits, predicted, labelled, _, _ = counts.unbind(dim=-1)
    return _share(2 * hits, predicted + labelled)


def _entity_precision(counts: torch.Tensor) -> torch.Tensor:
    return _share(counts[..., 0], counts[..., 1])


def _entity_recall(counts: torch.Tensor) -> torch.Tensor:
    return _share(counts[..., 0], counts[..., 2])


def _word_accuracy(counts: torch.Tensor) -> torch.Tensor:
    return _share(counts[..., 3], counts[..., 4])


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole, 0 of nothing."""
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)


def _check(predictions: torch.Tensor, labels: torch.Tensor, num_labels: int) -> None:
    shapes = [(len(labels), num_labels)] + ([(len(labels),)] if num_labels == 1 else [])
    if labels.dim() == 2 and labels.shape != predictions.shape:
        raise DataError(f"Predictions have shape {tuple(predictions.shape)}, but labels {tuple(labels.shape)}.")
    if tuple(predictions.shape) not in shapes or not len(labels):
        raise DataError(
            f"Predictions have shape {tuple(predictions.shape)}; expected {shapes[0]} for {len(labels)} "
            f"labels and {num_labels} outputs."
        )
    broken = int((~predictions.isfinite()).reshape(len(labels), -1).any(dim=-1).sum())
    if broken:
        raise DataError(
            NOT_FINITE.format(count=f"{broken} of {len(labels)} samples"),
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
            ValueMetric("mse", False, _mse),
            ValueMetric("micro_f1", True, _micro_f1),
            ValueMetric("macro_f1", True, _macro_f1),
            TagMetric("entity_f1", True, _entity_f1),
            TagMetric("entity_precision", True, _entity_precision),
            TagMetric("entity_recall", True, _entity_recall),
            TagMetric("word_accuracy", True, _word_accuracy, entities=False),
            AnswerMetric("squad_em", True, "exact_match"),
            AnswerMetric("squad_f1", True, "f1"),
            SearchMetric("ndcg@10", True, partial(_ndcg, top=10)),
            SearchMetric("recall@10", True, partial(_recall, top=10)),
            SearchMetric("recall@100", True, partial(_recall, top=100)),
            SearchMetric("mrr@10", True, partial(_reciprocal_rank, top=10)),
            SearchMetric("map", True, _average_precision),
            MapMetric("mean_iou", True, _mean_iou),
            MapMetric("pixel_accuracy", True, _pixel_accuracy),
            Metric("pseudo_perplexity", False),
            Metric("perplexity", False, relative=True),
            Metric("last_word_accuracy", True),
            Metric("last_word_perplexity", False, relative=True),
        )
    }
)
