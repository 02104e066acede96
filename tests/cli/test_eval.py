"""`optin eval`: with labels, without labels, without data, and the exit status of its gate."""

from pathlib import Path

import pytest
from helpers.running import call, done

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest

SIZES = ("--latency-runs", "0")


def evaluation(*args):
    return parse(Evaluation, done("eval", *args, *SIZES, "--json").out, "stdout")


def test_evaluation_with_labels(made):
    result = evaluation(made.pruned, "--task", "sst2", "--data", made.train, "--against", made.bert)
    assert result.task == "sst2" and result.samples == 24 and result.metric.name == "accuracy"
    assert result.latency is None and result.against.latency_ratio is None
    assert result.against.drop == pytest.approx(result.against.metric.value - result.metric.value)
    assert result.against.macs_ratio == pytest.approx(0.5992, abs=1e-3)
    manifest = parse(Manifest, (made.pruned / "optin.json").read_text(), "manifest")
    assert result.totals == manifest.after


def test_evaluation_without_labels_measures_agreement(made):
    for args in (["--data", made.texts], ["--data", made.texts, "--task", "sst2"]):
        result = evaluation(made.bert, *args, "--against", made.bert)
        assert result.metric is None and result.metrics == {}
        assert result.against.agreement == 1.0 and result.against.kl == pytest.approx(0, abs=1e-6)
        assert result.against.drop is None


def test_evaluation_without_data_measures_size_and_speed(made):
    result = parse(Evaluation, done("eval", made.bert, "--latency-runs", "2", "--json").out, "stdout")
    assert result.metric is None and result.samples == 0 and result.totals.macs > 0
    assert result.latency.runs == 2 and result.latency.median_ms > 0


@pytest.mark.parametrize(("most", "code"), [(-1.0, 3), (0.0, 0), (1.0, 0)])
def test_the_gate_of_a_drop(here, made, most, code):
    compare = ["--task", "sst2", "--data", made.train, "--against", made.bert, *SIZES]
    result = call("eval", made.bert, *compare, "--max-drop", most)
    assert result.code == code
    assert ("gate not met" in result.err) == (code == 3)
    assert result.out == "bert.eval.json\n", "the evaluation is written either way"
    assert parse(Evaluation, Path("bert.eval.json").read_text(), "eval").against.drop == 0
