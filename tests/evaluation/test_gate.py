"""The gate on a drop: what the samples say of it, and the paired error that it is judged by."""

import math

import pytest
import torch
from scipy.stats import binom

from optin_cli.errors import UsageError
from optin_cli.evaluation.gate import Drop, Gate
from optin_cli.evaluation.metrics import find_metric
from optin_cli.evaluation.perplexity import perplexity, perplexity_at
from optin_cli.evaluation.resampling import counted_at, drop_error, mean_at, metric_at
from optin_cli.options.gate import GateOptions


def drop(value, error, samples=200, *, relative=False):
    return Drop(value, error, samples, relative)


@pytest.mark.parametrize(
    ("most", "confidence", "found", "passes"),
    [
        (0.01, 0.5, drop(0.01, 0.5), True),
        (0.01, 0.5, drop(0.0101, 0.0), False),
        (0.01, 0.95, drop(0.005, 0.011), False),
        (0.01, 0.95, drop(-0.02, 0.011), True),
        (0.01, 0.95, drop(0.0, 0.0, samples=1000), True),
        (0.01, 0.95, drop(0.0, 0.0, samples=20), False),
        (0.01, 0.95, drop(0.005, None), True),
        (0.15, 0.9, drop(0.1, 0.05, relative=True), False),
    ],
)
def test_confidence_decides(most, confidence, found, passes):
    assert Gate(most, confidence).passes(found) is passes


def test_samples_that_cannot_tell_are_named_with_how_many_could():
    words = Gate(0.01).words(drop(0.005, 0.011))
    assert words.startswith("drop +0.0050 ± 0.0110 (paired standard error), within 0.01 at a confidence of 0.68")
    enough = 200 * (1.6449 * 0.011 / 0.005) ** 2
    assert f"200 samples do not tell at 0.95, about {float(f'{enough:.2g}'):,.0f} would" in words
    assert "the drop being at the limit itself" in Gate(0.01).words(drop(0.01, 0.011))
    sure = Gate(0.01).words(drop(-0.02, 0.011))
    assert sure.endswith("at a confidence of 1.00")
    assert "do not tell at 0.75" in Gate(0.01, 0.75).words(drop(0.005, 0.011))
    assert "0.15 (a share)" in Gate(0.15).words(drop(0.1, 0.05, relative=True)) and "+10.0% ± 5.0%" in Gate(0.15).words(
        drop(0.1, 0.05, relative=True)
    )
    assert Gate(0.01).words(drop(0.005, None)) is None


def test_more_samples_resolve_what_few_do_not():
    """At the number that the gate names, the same drop is told."""
    few = drop(0.005, 0.011)
    needed = math.ceil(200 * (1.645 * 0.011 / 0.005) ** 2)
    many = drop(0.005, 0.011 * math.sqrt(200 / needed), needed)
    assert "do not tell" in Gate(0.01).words(few) and "do not tell" not in Gate(0.01).words(many)


def test_the_paired_error_of_accuracy_is_that_of_the_differences():
    draw = torch.Generator().manual_seed(0)
    theirs = torch.rand(2000, generator=draw) < 0.85
    flipped = torch.rand(2000, generator=draw) < 0.04
    mine = theirs ^ flipped
    metric = find_metric("accuracy")
    found = drop_error(mean_at(mine), mean_at(theirs), 2000, metric)
    exact = float((theirs.double() - mine.double()).std()) / math.sqrt(2000)
    assert found == pytest.approx(exact, rel=0.15)
    alone = math.sqrt(0.85 * 0.15 / 2000)
    assert found < 0.7 * alone * math.sqrt(2), "samples that both answer alike do not count"
    assert drop_error(mean_at(mine), mean_at(mine), 2000, metric) == 0
    assert found == drop_error(mean_at(mine), mean_at(theirs), 2000, metric)
    assert drop_error(mean_at(mine[:1]), mean_at(theirs[:1]), 1, metric) is None


def test_no_difference_among_few_samples_proves_little():
    """With the error of one differing sample in place of none, the gate is about as careful as the binomial."""
    assert not Gate(0.01, 0.95).passes(drop(0.0, 0.0, samples=100))
    samples = next(n for n in range(1, 1000) if Gate(0.01, 0.95).passes(drop(0.0, 0.0, samples=n)))
    assert binom.pmf(0, samples, 0.01) < 0.25


def test_metrics_over_some_samples_are_those_of_these_samples():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 6, generator=draw), torch.randint(6, (40,), generator=draw)
    rows = torch.randint(40, (40,), generator=draw)
    for name in ("accuracy", "top5", "f1"):
        from optin_cli.evaluation.metrics import score_metrics

        expected = score_metrics([name], logits[rows], labels[rows], 6)[name]
        assert metric_at(name, logits, labels)(rows) == pytest.approx(expected)
    values = torch.randn(40, 1, generator=draw)
    truth = torch.randn(40, generator=draw)
    assert math.isnan(metric_at("pearson", values, truth)(torch.zeros(40, dtype=torch.long)))
    losses, counts = torch.rand(40, generator=draw).double() * 9, torch.randint(1, 9, (40,), generator=draw)
    assert perplexity_at(losses, counts)(rows) == pytest.approx(perplexity(losses[rows], counts[rows])[0])
    pixels = torch.randint(9, (40, 3, 4), generator=draw)
    pixels[:, 1:] += pixels[:, :1]
    whole = find_metric("mean_iou").compute(pixels[rows].double().sum(dim=0))
    assert counted_at("mean_iou", pixels)(rows) == pytest.approx(float(whole))


def test_a_relative_drop_has_a_relative_error():
    draw = torch.Generator().manual_seed(0)
    losses, counts = torch.rand(60, generator=draw).double() * 30 + 10, torch.full((60,), 10)
    worse = losses * 1.05 + torch.rand(60, generator=draw).double()
    found = drop_error(perplexity_at(worse, counts), perplexity_at(losses, counts), 60, find_metric("perplexity"))
    assert 0 < found < 0.5


def test_a_confidence_needs_a_limit():
    with pytest.raises(UsageError, match="--confidence is of --max-drop"):
        GateOptions(confidence=0.9)
    with pytest.raises(UsageError, match="The confidence"):
        GateOptions(max_drop=0.1, confidence=1.0)
