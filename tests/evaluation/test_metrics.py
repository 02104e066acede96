"""Metrics against values worked by hand; their errors; distances between models."""

import math

import pytest
import torch

from optin_cli.errors import DataError
from optin_cli.evaluation.distances import distances
from optin_cli.evaluation.metrics import (
    METRICS,
    RESAMPLES,
    SEED,
    count_pixels,
    score_answers,
    score_maps,
    score_metrics,
)
from optin_cli.evaluation.resampling import standard_error


def one_hot(classes, count=2):
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


# Predicted 1 1 1 0 against 1 1 0 0: 2 true positives, 1 false positive, 1 true negative.
PREDICTED, TRUTH = one_hot([1, 1, 1, 0]), torch.tensor([1, 1, 0, 0])
# Chosen {0, 1}, {0} against {0, 1}, {2}: of three classes.
LOGITS, SETS = torch.tensor([[2.0, 1, -1], [0.5, -3, -1]]), torch.tensor([[1.0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "expected"),
    [
        ("accuracy", PREDICTED, TRUTH, 0.75),
        ("accuracy", one_hot([0, 1, 2], 3), torch.tensor([0, 1, 1]), 2 / 3),
        ("f1", PREDICTED, TRUTH, 0.8),
        ("f1", one_hot([0, 1, 2], 3), torch.tensor([0, 1, 1]), (1 + 2 / 3 + 0) / 3),
        ("f1", one_hot([0, 0]), torch.tensor([1, 1]), 0.0),
        ("matthews", PREDICTED, TRUTH, 2 / math.sqrt(12)),
        ("matthews", one_hot([1, 1, 1, 1]), TRUTH, 0.0),
        ("pearson", torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]), 0.5),
        ("pearson", torch.tensor([[1.0], [2.0], [3.0]]) * 1e-5, torch.tensor([1.0, 3.0, 2.0]), 0.5),
        ("pearson", torch.ones(3), torch.tensor([1.0, 3.0, 2.0]), 0.0),
        ("spearman", torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0.0, 0.1, 5.0]), 1.0),
        ("spearman", torch.ones(3, 1), torch.tensor([0.0, 0.1, 5.0]), 0.0),
        ("mse", torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]), 2.0),
        ("mse", torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [4.0, 3.0]]), 2.0),
        ("pearson", torch.tensor([[1.0, 0], [2, 9], [3, 3]]), torch.tensor([[1.0, 0], [3, 6], [2, 2]]), 0.75),
        ("spearman", torch.tensor([[1.0, 1], [2, 2]]), torch.tensor([[0.0, 9], [0.1, 3]]), 0.0),
        ("micro_f1", LOGITS, SETS, 2 * 2 / (3 + 3)),
        ("macro_f1", LOGITS, SETS, (2 / 3 + 1 + 0) / 3),
        ("micro_f1", torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]]), 2 / 3),
    ],
)
def test_metrics_equal_values_worked_by_hand(name, predictions, labels, expected):
    # torchmetrics keeps Spearman's denominator away from zero by 1e-6.
    outputs = predictions.shape[1] if predictions.dim() == 2 else 1
    assert score_metrics([name], predictions, labels, outputs) == {name: pytest.approx(expected, abs=2e-6)}


def test_metrics_keep_the_asked_order_and_all_but_errors_grow_with_quality():
    assert list(score_metrics(["f1", "accuracy"], PREDICTED, TRUTH, 2)) == ["f1", "accuracy"]
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"mse", "pseudo_perplexity", "perplexity", "last_word_perplexity"}


def test_f1_counts_the_positive_class():
    flipped = score_metrics(["f1"], PREDICTED.flip(-1), 1 - TRUTH, 2, positive=0)
    assert flipped == pytest.approx(score_metrics(["f1"], PREDICTED, TRUTH, 2))


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "outputs", "message"),
    [
        (["f2"], PREDICTED, TRUTH, 2, "no metric named 'f2'"),
        (["accuracy"], PREDICTED, TRUTH, 3, r"expected \(4, 3\)"),
        (["accuracy"], PREDICTED[:2], TRUTH, 2, "shape"),
        (["accuracy"], PREDICTED[:0], TRUTH[:0], 2, "shape"),
        (["accuracy"], PREDICTED * math.nan, TRUTH, 2, "NaN or infinity for 4 of 4"),
        (["pearson"], torch.arange(3.0), torch.ones(3), 1, "all 3 labels are the same"),
        (["spearman"], torch.arange(3.0), torch.ones(3), 1, "all 3 labels are the same"),
        (["matthews"], PREDICTED, torch.ones(4).long(), 2, "all 4 labels are the same"),
    ],
)
def test_unfit_predictions_and_labels_are_refused(names, predictions, labels, outputs, message):
    with pytest.raises(DataError, match=message):
        score_metrics(names, predictions, labels, outputs)


def test_standard_error_of_accuracy_is_binomial():
    assert standard_error("accuracy", 0.75, PREDICTED, TRUTH) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_standard_error_of_correlation_is_reproducible_and_near_theory():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, generator=generator)
    y = x + torch.randn(400, generator=generator)
    first, second = (standard_error("pearson", 0.7, x, y) for _ in range(2))
    assert first == second
    assert first == pytest.approx((1 - 0.5) / math.sqrt(400), rel=0.3)


def test_standard_error_without_a_defined_value_is_none():
    assert standard_error("pearson", 0.0, torch.zeros(1), torch.zeros(1)) is None


def test_agreement_and_kl_equal_values_worked_by_hand():
    p, q = torch.tensor([[0.8, 0.2], [0.5, 0.5]]), torch.tensor([[0.4, 0.6], [0.5, 0.5]])
    # KL(reference || model), not the other way about.
    expected = (0.4 * math.log(0.4 / 0.8) + 0.6 * math.log(0.6 / 0.2)) / 2
    assert distances(p.log(), q.log(), "categorical") == (0.5, pytest.approx(expected, abs=1e-6))
    assert distances(p.log() + 3, p.log(), "categorical") == (1, pytest.approx(0, abs=1e-9))
    assert distances(torch.ones(3, 1), torch.ones(3, 1), "categorical") is None


def test_distances_of_several_labels_equal_values_worked_by_hand():
    # Probabilities of two classes in two texts; the first text gets one class in both, the second another number.
    p, q = torch.tensor([[0.8, 0.3], [0.6, 0.7]]), torch.tensor([[0.9, 0.2], [0.6, 0.4]])
    pairs = zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)
    expected = sum(b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)) for a, b in pairs) / 2
    assert distances(p.logit(), q.logit(), "bernoulli") == (0.5, pytest.approx(expected, abs=1e-6))
    assert distances(p.logit(), p.logit(), "bernoulli") == (1, pytest.approx(0, abs=1e-9))


def test_distances_of_values_equal_values_worked_by_hand():
    reference = torch.tensor([[1.0], [3.0]])  # mean 2, variance 1
    assert distances(reference, reference, "real") == (1, 0)
    # Two above everywhere: covariance 1, so 2 * 1 / (1 + 1 + 4); squares of 4 over twice the variance.
    assert distances(reference + 2, reference, "real") == (pytest.approx(1 / 3), pytest.approx(2))
    # The mean everywhere.
    assert distances(torch.full((2, 1), 2.0), reference, "real") == (pytest.approx(0), pytest.approx(0.5))
    assert distances(-reference, -reference.flip(0), "real") == (pytest.approx(-1), pytest.approx(2))
    # Outputs are averaged, less those that do not vary in the reference.
    both = torch.cat([reference + 2, reference, torch.rand(2, 1)], dim=1)
    fixed = torch.cat([reference, reference, torch.ones(2, 1)], dim=1)
    assert distances(both, fixed, "real") == (pytest.approx(2 / 3), pytest.approx(1))
    assert distances(torch.rand(2, 1), torch.ones(2, 1), "real") is None


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "real"])
def test_comparing_different_shapes_is_refused(kind):
    with pytest.raises(DataError, match="differ in shape"):
        distances(torch.ones(3, 2), torch.ones(3, 3), kind)


def test_top5_counts_labels_among_the_five_largest_and_needs_six_classes():
    logits = torch.arange(8.0).repeat(4, 1)
    labels = torch.tensor([7, 3, 2, 0])
    values = score_metrics(["accuracy", "top5"], logits, labels, 8)
    assert values == {"accuracy": 0.25, "top5": 0.5}
    assert score_metrics(["accuracy", "top5"], logits[:, :5], labels.clamp(max=4), 5).keys() == {"accuracy"}
    assert standard_error("top5", 0.5, logits, labels) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "f1"),
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("a cat", ["an CAT."], 1, 1),
        ("black cat", ["white cat"], 0, 0.5),
        ("cat", ["the big black cat", "dog"], 0, 0.5),
        ("cat", ["dog", "Cat"], 1, 1),
        ("cat sat on mat", ["cat sat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("U.S.", ["us"], 1, 1),
    ],
)
def test_answers_are_normalised_and_scored_as_squad_does(given, accepted, exact, f1):
    values, error = score_answers(["squad_f1", "squad_em"], [given], [accepted])
    assert values == pytest.approx({"squad_f1": f1, "squad_em": exact})
    assert list(values) == ["squad_f1", "squad_em"]
    assert error is None


def test_answer_metrics_average_and_tell_their_error():
    values, error = score_answers(["squad_em", "squad_f1"], ["a b", "x", "x", "y"], [["b"], ["x"], ["y z", "q"], []])
    assert values == pytest.approx({"squad_em": 0.5, "squad_f1": 0.5})
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_metrics_of_the_other_kind_are_refused():
    with pytest.raises(DataError, match="squad_em scores answers"):
        score_metrics(["squad_em"], torch.eye(2), torch.tensor([0, 1]), 2)
    with pytest.raises(DataError, match="accuracy scores numbers"):
        score_answers(["accuracy"], ["a"], [["a"]])


# Label maps

IGNORED = -1


def label_maps(images=6, classes=4, *, absent=()):
    """Predicted and labelled maps (images, 5, 7); class 3 is rare, and some pixels do not count."""
    draw = torch.Generator().manual_seed(3)
    odds = torch.tensor([0.0 if number in absent else weight for number, weight in enumerate((4.0, 3.0, 2.0, 0.3))])
    labels = torch.multinomial(odds, images * 35, replacement=True, generator=draw).reshape(images, 5, 7)
    other = torch.multinomial(odds, images * 35, replacement=True, generator=draw).reshape(images, 5, 7)
    predicted = torch.where(torch.rand(labels.shape, generator=draw) < 0.6, labels, other)
    return predicted, labels.masked_fill(torch.rand(labels.shape, generator=draw) < 0.1, IGNORED)


def counted(predicted, labels, classes=4):
    return torch.stack([count_pixels(p, t, classes, IGNORED) for p, t in zip(predicted, labels, strict=True)])


def test_counts_are_diagonal_and_margins_of_what_counts():
    predicted, labels = torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 1, 2], [IGNORED, 2, 1]])
    assert count_pixels(predicted, labels, 3, IGNORED).tolist() == [[1, 1, 1], [1, 2, 2], [2, 2, 1]]
    assert count_pixels(predicted, labels * 0 + IGNORED, 3, IGNORED).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("absent", [(), (2,)], ids=["all classes", "one absent"])
def test_scores_of_maps_are_those_of_all_pixels(absent):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    predicted, labels = label_maps(absent=absent)
    found = score_maps(("mean_iou", "pixel_accuracy"), counted(predicted, labels))
    flat = predicted.flatten(), labels.flatten()
    options = {"num_classes": 4, "ignore_index": IGNORED}
    assert found.values["mean_iou"] == pytest.approx(float(multiclass_jaccard_index(*flat, **options)))
    accuracy = multiclass_accuracy(*flat, average="micro", **options)
    assert found.values["pixel_accuracy"] == pytest.approx(float(accuracy))
    each = multiclass_jaccard_index(*flat, average="none", **options).tolist()
    assert found.class_iou == [None if n in absent else pytest.approx(v) for n, v in enumerate(each)]


def test_a_class_that_is_only_predicted_counts_as_missed():
    found = score_maps(("mean_iou",), counted(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), 3))
    assert found.class_iou == [0.5, 0.0, None] and found.values == {"mean_iou": 0.25} and found.error is None


@pytest.mark.parametrize("name", ["mean_iou", "pixel_accuracy"])
def test_errors_of_maps_are_those_of_resampled_images(name):
    counts = counted(*label_maps())
    rows = torch.randint(6, (RESAMPLES, 6), generator=torch.Generator().manual_seed(SEED))
    by_hand = [score_maps((name,), counts[chosen]).values[name] for chosen in rows]
    error = score_maps((name,), counts).error
    assert error == pytest.approx(float(torch.tensor(by_hand, dtype=torch.float64).std()))
    assert score_maps((name,), counts).error == error > 0


def test_maps_that_cannot_be_scored_are_refused():
    predicted, labels = label_maps()
    with pytest.raises(DataError, match="Every pixel of the label maps is ignored"):
        score_maps(("mean_iou",), counted(predicted, labels * 0 + IGNORED))
    with pytest.raises(DataError, match="accuracy does not score label maps"):
        score_maps(("accuracy",), counted(predicted, labels))
