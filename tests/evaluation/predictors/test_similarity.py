"""Sentence similarity: embeddings, cosine, metrics, and calibration on single sentences."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers.models import save_checkpoint
from helpers.running import call, done, write_rows
from helpers.similarity import PAIRS, ROWS, TASK, samples_of

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.pairs import pair_batches
from optin_cli.data.text.samples import Samples, load_samples
from optin_cli.errors import DataError
from optin_cli.evaluation.evaluate import Exam, evaluate_samples
from optin_cli.evaluation.predict import Trial, encoded
from optin_cli.evaluation.predictors.similarity import embed
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring.baselines import loss_gradients
from optin_cli.scoring.calibration import calibrate

OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=8)


def test_embedding_is_the_mean_of_real_tokens_in_the_samples_order(encoder):
    texts = ["a b c d e f", "good", "h i j", "k l"]
    samples = Samples("d", "all", [(text,) for text in texts], None, None, "0" * 64, 4)
    found = embed(encoder, encoded(Trial(encoder, samples, None, OPTIONS), labelled=False))
    tokenizer = encoder.input.tokenizer()
    for text, embedding in zip(texts, found, strict=True):
        alone = encoder.model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(embedding, alone.mean(dim=0))


def test_identical_sentences_have_similarity_1(encoder):
    # Whatever the cosine of the third pair is, it lies below; ranks of the first two depend on rounding.
    pairs = [PAIRS[0], PAIRS[2], PAIRS[1]]
    result = evaluate_samples(encoder, Exam(samples_of(pairs), TASK, OPTIONS))
    assert list(result.metrics) == ["spearman", "pearson"]
    assert result.metric.name == "spearman"
    assert result.metrics["pearson"] == pytest.approx(1.0, abs=1e-6)
    twice = samples_of(PAIRS, texts=[("a b c",), ("good film",), ("a b c",), ("good film",)], labels=None)
    first, second = embed(encoder, encoded(Trial(encoder, twice, None, OPTIONS), labelled=False)).chunk(2)
    assert torch.cosine_similarity(first, second).tolist() == pytest.approx([1.0, 1.0])


def test_values_are_those_of_cosines_worked_out_one_by_one(encoder):
    from scipy import stats

    tokenizer = encoder.input.tokenizer()

    def vector(text):
        return encoder.model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    pairs = [("a b c", "a d", 3.0), ("good film", "film good", 1.5), ("d e f g h", "i", 4.0), ("bad", "a b", 0.5)]
    cosines = [float(torch.cosine_similarity(vector(a), vector(b), dim=0)) for a, b, _ in pairs]
    result = evaluate_samples(encoder, Exam(samples_of(pairs), TASK, OPTIONS))
    labels = [label for *_, label in pairs]
    assert result.metrics["spearman"] == pytest.approx(stats.spearmanr(cosines, labels).statistic, abs=1e-5)
    assert result.metrics["pearson"] == pytest.approx(stats.pearsonr(cosines, labels).statistic, abs=1e-5)


def test_eval_command_compares_two_encoders(encoder_folder, here):
    data = write_rows(here / "stsb.jsonl", ROWS)
    run = done(
        "eval",
        encoder_folder,
        "--task",
        "stsb-cosine",
        "--data",
        data,
        "--against",
        encoder_folder,
        "--latency-runs",
        0,
        "--json",
    )
    result = json.loads(run.out)
    assert result["samples"] == 4
    assert result["against"]["drop"] == 0
    assert result["against"]["agreement"] is None


def test_calibration_has_single_sentences(tmp_path, encoder):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    samples = load_samples(DataSpec(path=path, known=TASK))
    assert sorted(samples.texts) == sorted((text,) for a, b, _ in PAIRS for text in (a, b))
    assert samples.labels is None
    assert samples.total == 8
    calibration = calibrate(encoder, samples, ScoreOptions(max_length=32, exact_samples=2), task=TASK, labelled=False)
    assert calibration.source == Source(name="train.jsonl", sha256=samples.sha256)
    fed = [[i for i in row if i] for batch in calibration.batches for row in batch.inputs["input_ids"].tolist()]
    assert sorted(fed) == sorted(encoder.input.tokenizer()(text)["input_ids"] for (text,) in samples.texts)
    assert sum(batch.size for batch in calibration.exact_batches) == 2


@pytest.mark.parametrize(("head", "texts"), [("base", 8), ("classes", 4)])
def test_files_are_read_as_the_model_reads_texts(tmp_path, head, texts):
    path = write_rows(tmp_path / "train.jsonl", ROWS)
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "model", head=head))
    assert len(checkpoint.input.load_samples(DataSpec(path=path))) == texts
    assert len(checkpoint.input.load_samples(DataSpec(path=path, role="evaluation"))) == 4


def labelled_pairs(encoder, pairs=PAIRS, task=TASK, size=4):
    samples = samples_of(pairs)
    return pair_batches(samples, task, encoder.input.tokenizer(), batch_size=size, max_length=16)


def test_the_loss_of_pairs_is_the_squared_error_of_their_cosine(encoder):
    """Gradients by gates against central differences of scaled consumer columns."""
    checkpoint = replace(encoder, model=copy.deepcopy(encoder.model).double())
    pairs = [("a b c", "good film d", 4.0)]
    (batch,) = labelled_pairs(checkpoint, pairs)
    groups = checkpoint.structure.groups
    found = loss_gradients(checkpoint.model, checkpoint.structure, groups, batch)

    def loss():
        samples = samples_of(pairs, labels=None)
        alone = replace(samples, texts=[(text,) for text in pairs[0][:2]])
        first, second = embed(checkpoint, encoded(Trial(checkpoint, alone, None, OPTIONS), labelled=False)).chunk(2)
        return float((torch.cosine_similarity(first, second) - 0.8).square())

    for group in groups:
        assert found[group.name].shape == (1, group.units)
        weight = checkpoint.model.get_submodule(group.consumer).weight
        columns = weight.data[:, group.unit_width : 2 * group.unit_width]
        values, step = [], 1e-2
        for scale in (1 + step, (1 - step) / (1 + step), 1 / (1 - step)):
            columns.mul_(scale)
            values.append(loss())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(found[group.name][0, 1]), rel=1e-2, abs=1e-6)


def test_sweeps_calibrate_on_a_file_as_on_the_task(encoder_folder, here):
    data = write_rows(here / "stsb.jsonl", ROWS * 3)
    common = (
        "--task",
        "stsb-cosine",
        "--data",
        data,
        "--latency-runs",
        "0",
        "--keep-flops",
        "0.8",
        "--batch-size",
        "4",
    )
    recipes = ("--recipe", "no-refit,fisher,kwon", "--samples", "8", "--json")
    named, plain = (
        json.loads(done("sweep", encoder_folder, *common, *recipes, *calib, "-o", name).out)
        for name, calib in (("named", ("--calib", "stsb-cosine", "--calib-data", data)), ("plain", ("--calib", data)))
    )
    one, other = (sweep["inputs"]["calibration"] for sweep in (named, plain))
    assert one["sha256"] == other["sha256"]
    assert [p["value"] for p in named["points"]] == [p["value"] for p in plain["points"]]
    done(
        "score",
        encoder_folder,
        "--criterion",
        "fisher",
        "--calib",
        "stsb-cosine",
        "--data",
        data,
        "-o",
        "f.safetensors",
    )


def test_labels_of_classes_mean_nothing_to_an_encoder(encoder_folder, here):
    data = write_rows(here / "classes.jsonl", [{"sentence": f"a b {n}", "label": n % 2} for n in range(8)])
    result = call("score", encoder_folder, "--criterion", "fisher", "--calib", data)
    assert result.code == 2 and result.out == ""
    assert "sentence embeddings" in result.err and "--calib stsb-cosine" in result.err


def test_classifier_is_refused(tmp_path):
    classifier = load_checkpoint(save_checkpoint(tmp_path / "classifier"))
    with pytest.raises(DataError, match=r"stsb-cosine is a similarity task, but classifier is a .* for classification"):
        evaluate_samples(classifier, Exam(samples_of(PAIRS), TASK, OPTIONS))


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
        evaluate_samples(encoder, Exam(samples_of(PAIRS, **changes), TASK, OPTIONS))


def test_missing_column_is_named(encoder_folder, here):
    data = write_rows(here / "stsb.jsonl", [{"sentence1": "a", "label": 1.0}])
    run = call("eval", encoder_folder, "--task", "stsb-cosine", "--data", data)
    assert run.code == 1
    assert "no column 'sentence2'" in run.err
    assert "--text-columns" in run.err
