"""Own rows of texts, measured by what the model is for: classes, several labels, numbers."""

import numpy as np
import pytest
import torch
from helpers.models import save_checkpoint
from helpers.running import call, write_rows
from scipy import stats
from scipy.special import expit

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.sweep import SweepOptions

TEXTS = [f"{word} {other} film" for word in "abcdef" for other in ("good", "bad", "g h i")]
OPTIONS = EvalOptions(latency_runs=0, batch_size=4, seq_len=8)


@torch.no_grad()
def logits_of(checkpoint):
    """Of every text, fed alone: (N, outputs)."""
    tokenizer = checkpoint.input.tokenizer()
    return np.stack([checkpoint.model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS])


def centred(folder, head, seed=0, **options):
    """A checkpoint whose outputs are about 0 on average, and its outputs."""
    checkpoint = load_checkpoint(save_checkpoint(folder, head=head, seed=seed, **options))
    checkpoint.model.classifier.bias -= torch.from_numpy(logits_of(checkpoint).mean(axis=0))
    return checkpoint, logits_of(checkpoint)


def rows_of(labels, column="label"):
    return [{"text": text, column: label} for text, label in zip(TEXTS, labels, strict=True)]


def test_several_labels_a_text(tmp_path):
    (mine, logits), (other, theirs) = (centred(tmp_path / str(seed), "labels", seed) for seed in range(2))
    truth = theirs > np.quantile(theirs, 0.6)
    path = write_rows(tmp_path / "d.jsonl", rows_of([np.flatnonzero(row).tolist() for row in truth], "labels"))
    found = optin_cli.evaluate(mine, data=path, against=other, options=OPTIONS)
    chosen = logits > 0
    hits, sums = (chosen & truth).sum(axis=0), chosen.sum(axis=0) + truth.sum(axis=0)
    assert found.task == "multi-label"
    assert found.metrics == pytest.approx(
        {"micro_f1": 2 * hits.sum() / sums.sum(), "macro_f1": (2 * hits / sums).mean()}
    )
    assert found.against.agreement == pytest.approx((chosen == (theirs > 0)).all(axis=1).mean())
    p, q = expit(theirs.astype(float)), expit(logits.astype(float))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found.against.kl == pytest.approx(divergence.sum(axis=1).mean(), rel=1e-4)
    hot = write_rows(tmp_path / "hot.jsonl", rows_of(truth.astype(float).tolist()))
    assert optin_cli.evaluate(mine, "multi-label", data=hot, options=OPTIONS).metrics == found.metrics


@pytest.mark.parametrize("outputs", [1, 2])
def test_numbers(tmp_path, outputs):
    kind = {"num_labels": outputs, "problem_type": "regression"}
    mine, logits = centred(tmp_path / "mine", "regression", **kind)
    other, _ = centred(tmp_path / "other", "regression", 1, **kind)
    labels = np.arange(len(TEXTS) * outputs).reshape(-1, outputs) % 7 / 2
    written = labels.tolist() if outputs > 1 else labels[:, 0].tolist()
    path = write_rows(tmp_path / "d.jsonl", rows_of(written, "score"))
    found = optin_cli.evaluate(mine, data=path, against=other, options=OPTIONS)
    columns = [(logits[:, n], labels[:, n]) for n in range(outputs)]
    assert found.task == "regression" and list(found.metrics) == ["pearson", "spearman", "mse"]
    assert found.metrics["pearson"] == pytest.approx(np.mean([stats.pearsonr(*c).statistic for c in columns]), abs=1e-5)
    assert found.metrics["spearman"] == pytest.approx(
        np.mean([stats.spearmanr(*c).statistic for c in columns]), abs=1e-5
    )
    assert found.metrics["mse"] == pytest.approx(((logits - labels) ** 2).mean(), rel=1e-5)
    assert -1 <= found.against.agreement < 1 and found.against.kl > 0


# Classes


NAMES = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """A folder whose classes stand in another order than those of sst2, and its class of every text."""
    folder = tmp_path_factory.mktemp("flipped") / "flipped"
    checkpoint, _ = centred(folder, "classes", num_labels=2, **NAMES)
    checkpoint.model.save_pretrained(folder)
    classes = logits_of(load_checkpoint(folder)).argmax(axis=1).tolist()
    assert 4 < sum(classes) < 14
    return folder, classes


def evaluated(*args):
    run = call("eval", *args, "--latency-runs", 0, "--json")
    assert run.code == 0, run.err
    return parse(Evaluation, run.out, "stdout"), run.err


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("task", [(), ("--task", "classification"), ("--task", "sst2", "--text-columns", "text")])
def test_own_rows_are_numbered_or_named_as_the_models_classes(flipped, tmp_path, task, named):
    folder, classes = flipped
    labels = [NAMES["id2label"][number].upper() for number in classes] if named else classes
    found, said = evaluated(folder, "--data", write_rows(tmp_path / "d.jsonl", rows_of(labels)), *task)
    assert found.metrics["accuracy"] == 1 and found.notes == () and "chance" not in said


def test_an_accuracy_below_chance_is_pointed_out(flipped, tmp_path):
    folder, classes = flipped
    path = write_rows(tmp_path / "d.jsonl", [{"sentence": t, "label": c} for t, c in zip(TEXTS, classes, strict=True)])
    found, said = evaluated(folder, "--data", path, "--task", "sst2")
    assert found.metrics["accuracy"] == 0 and len(found.notes) == 1 and found.notes[0] in said
    assert "0.0000, is below chance (1 / 2)" in said and "0 = positive, 1 = negative" in said
    assert "in the order of sst2" in said and "--task classification" in said
    wrong = write_rows(tmp_path / "w.jsonl", rows_of([1 - c for c in classes]))
    assert "as class names" in evaluated(folder, "--data", wrong)[1]


def test_texts_that_are_cut_short_are_counted(flipped, tmp_path):
    folder, classes = flipped
    path = write_rows(tmp_path / "d.jsonl", rows_of(classes))
    found, said = evaluated(folder, "--data", path, "--max-length", 7)
    long = sum(text.endswith("g h i film") for text in TEXTS)
    assert (found.truncated, found.options["max_length"]) == (0, 7)
    found, said = evaluated(folder, "--data", path, "--max-length", 6)
    assert (found.truncated, found.options["max_length"]) == (long, 6)
    assert f"{long} of {len(TEXTS)} samples were truncated to 6 tokens" in said
    found, said = evaluated(folder, "--data", path)
    assert (found.truncated, found.options["max_length"], "truncated" in said) == (0, 48, False)


def test_tasks_for_own_data_ask_for_it(flipped, tmp_path):
    folder, _ = flipped
    for args in (("eval", folder), ("sweep", folder, "--calib", "x.jsonl", "--keep-flops", 0.5, "-o", tmp_path / "s")):
        run = call(*args, "--task", "classification")
        assert run.code == 1 and "classification has no data of its own" in run.err and "--data PATH" in run.err
    run = call("sweep", folder, "--calib", "x.jsonl", "--keep-flops", 0.5, "-o", tmp_path / "s")
    assert run.code == 2 and "--task NAME" in run.err


def test_a_sweep_takes_the_task_from_the_model(flipped, tmp_path):
    folder, classes = flipped
    path = write_rows(tmp_path / "d.jsonl", rows_of(classes))
    calib = write_rows(tmp_path / "c.jsonl", [{"text": t, "label": [0]} for t in TEXTS[:6]])
    options = SweepOptions(("magnitude",), keep_flops=(0.7,), evaluation=OPTIONS)
    found = optin_cli.sweep(folder, None, calib, tmp_path / "s", options, data=path)
    assert (found.task, found.metric, found.baseline.value) == ("classification", "accuracy", 1)
