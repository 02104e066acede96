"""Sentence similarity: embeddings, cosine, metrics, and calibration on single sentences."""

import json
from dataclasses import replace

import pytest
import torch
from models import save_checkpoint
from running import call, done, write_rows

from optin_cli.artifacts import Source
from optin_cli.calibration import calibrate
from optin_cli.checkpoint import load_checkpoint
from optin_cli.data import Samples, load_samples
from optin_cli.errors import DataError
from optin_cli.evaluating.similarity import embed
from optin_cli.evaluating.trial import Trial, encoded
from optin_cli.evaluation import evaluate_checkpoint
from optin_cli.options import EvalOptions, ScoreOptions
from optin_cli.tasks import load_task

TASK = load_task("stsb-cosine")
OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=8)
PAIRS = [("a b c", "a b c", 5.0), ("good film", "a b c d e f", 1.0), ("d e f", "d e f", 5.0), ("bad", "g h i j", 2.5)]
ROWS = [dict(zip(("sentence1", "sentence2", "label"), pair, strict=True)) for pair in PAIRS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("encoder") / "base", head="base")


@pytest.fixture(scope="module")
def encoder(folder):
    return load_checkpoint(folder)


def samples_of(pairs, **changes):
    labels = [label for *_, label in pairs]
    found = Samples("d", "all", [tuple(texts) for *texts, _ in pairs], labels, None, "0" * 64, len(labels))
    return replace(found, **changes)


def test_embedding_is_the_mean_of_real_tokens_in_the_samples_order(encoder):
    texts = ["a b c d e f", "good", "h i j", "k l"]
    samples = Samples("d", "all", [(text,) for text in texts], None, None, "0" * 64, 4)
    found = embed(encoder, encoded(Trial(encoder, samples, None, OPTIONS), labelled=False))
    tokenizer = encoder.tokenizer()
    for text, embedding in zip(texts, found, strict=True):
        alone = encoder.model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(embedding, alone.mean(dim=0))


def test_identical_sentences_have_similarity_1(encoder):
    # Whatever the cosine of the third pair is, it lies below; ranks of the first two depend on rounding.
    pairs = [PAIRS[0], PAIRS[2], PAIRS[1]]
    result = evaluate_checkpoint(encoder, samples_of(pairs), task=TASK, options=OPTIONS)
    assert list(result.metrics) == ["spearman", "pearson"]
    assert result.metric.name == "spearman"
    assert result.metrics["pearson"] == pytest.approx(1.0, abs=1e-6)
    twice = samples_of(PAIRS, texts=[("a b c",), ("good film",), ("a b c",), ("good film",)], labels=None)
    first, second = embed(encoder, encoded(Trial(encoder, twice, None, OPTIONS), labelled=False)).chunk(2)
    assert torch.cosine_similarity(first, second).tolist() == pytest.approx([1.0, 1.0])


def test_values_are_those_of_cosines_worked_out_one_by_one(encoder):
    from scipy import stats

    tokenizer = encoder.tokenizer()

    def vector(text):
        return encoder.model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    pairs = [("a b c", "a d", 3.0), ("good film", "film good", 1.5), ("d e f g h", "i", 4.0), ("bad", "a b", 0.5)]
    cosines = [float(torch.cosine_similarity(vector(a), vector(b), dim=0)) for a, b, _ in pairs]
    result = evaluate_checkpoint(encoder, samples_of(pairs), task=TASK, options=OPTIONS)
    labels = [label for *_, label in pairs]
    assert result.metrics["spearman"] == pytest.approx(stats.spearmanr(cosines, labels).statistic, abs=1e-5)
    assert result.metrics["pearson"] == pytest.approx(stats.pearsonr(cosines, labels).statistic, abs=1e-5)


def test_eval_command_compares_two_encoders(folder, here):
    data = write_rows(here / "stsb.jsonl", ROWS)
    run = done(
        "eval", folder, "--task", "stsb-cosine", "--data", data, "--against", folder, "--latency-runs", 0, "--json"
    )
    result = json.loads(run.out)
    assert result["samples"] == 4
    assert result["against"]["drop"] == 0
    assert result["against"]["agreement"] is None


def test_calibration_has_single_sentences(tmp_path, encoder):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    samples = load_samples(str(path), task=TASK, split="calibration")
    assert sorted(samples.texts) == sorted((text,) for a, b, _ in PAIRS for text in (a, b))
    assert samples.labels is None
    assert samples.total == 8
    calibration = calibrate(encoder, samples, ScoreOptions(max_length=32, exact_samples=2), task=TASK, labelled=False)
    assert calibration.source == Source(name="train.jsonl", sha256=samples.sha256)
    fed = [[i for i in row if i] for batch in calibration.batches for row in batch.inputs["input_ids"].tolist()]
    assert sorted(fed) == sorted(encoder.tokenizer()(text)["input_ids"] for (text,) in samples.texts)
    assert sum(batch.size for batch in calibration.exact_batches) == 2


def test_calibration_does_not_depend_on_row_order(tmp_path):
    first, second = (write_rows(tmp_path / name, rows) for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS[::-1])))
    one, other = (load_samples(str(p), task=TASK, split="calibration", limit=5, seed=3) for p in (first, second))
    assert (one.texts, one.sha256) == (other.texts, other.sha256)


def test_evaluation_keeps_pairs(tmp_path):
    path = write_rows(tmp_path / "validation.jsonl", ROWS)
    samples = load_samples(str(path), task=TASK, split="evaluation")
    assert sorted(samples.texts) == sorted((a, b) for a, b, _ in PAIRS)
    assert samples.head(2).labels == samples.labels[:2]


def test_classifier_is_refused(tmp_path):
    classifier = load_checkpoint(save_checkpoint(tmp_path / "classifier"))
    with pytest.raises(DataError, match=r"stsb-cosine is a similarity task, but classifier is a .* for classification"):
        evaluate_checkpoint(classifier, samples_of(PAIRS), task=TASK, options=OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": [("a",), ("b",), ("c",), ("d",)]}, "two texts a sample, sentence1 and sentence2"),
        ({"labels": ["x", "y", "z", "x"]}, "expected a number"),
        ({"labels": [1.0, 1.0, 1.0, 1.0]}, "all 4 labels are the same"),
        ({"labels": None}, "no labels to measure"),
    ],
)
def test_unfit_samples_are_refused(encoder, changes, message):
    with pytest.raises(DataError, match=message):
        evaluate_checkpoint(encoder, samples_of(PAIRS, **changes), task=TASK, options=OPTIONS)


def test_missing_column_is_named(folder, here):
    data = write_rows(here / "stsb.jsonl", [{"sentence1": "a", "label": 1.0}])
    run = call("eval", folder, "--task", "stsb-cosine", "--data", data)
    assert run.code == 1
    assert "no column 'sentence2'" in run.err
    assert "--text-columns" in run.err
