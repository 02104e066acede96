"""Every task of one label per sample runs in evaluation, on tiny models."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.masks import make_mask
from helpers.models import save_checkpoint, save_images
from helpers.running import call, tree, write_rows
from pydantic import ValidationError
from scipy import stats

import optin_cli
from optin_cli.architectures.registry import known_heads
from optin_cli.architectures.schema import HeadRule, Purpose
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.checks import SERVING
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation.evaluate import Exam, evaluate_samples
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.tasks.registry import load_task, task_names
from optin_cli.tasks.schema import Kind

OPTIONS = EvalOptions(latency_runs=0, batch_size=4, seq_len=8)

TEXT_TASKS = [task for task in map(load_task, task_names()) if task.input == "text"]

TASKS = [task for task in TEXT_TASKS if task.kind in ("classification", "regression")]

WORDS = "abcdefghi"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two models of other weights by number of outputs, whose classes are about as likely."""
    root = tmp_path_factory.mktemp("checkpoints")
    heads = {1: "regression", 2: "classes", 3: "classes"}
    found = {
        outputs: [
            load_checkpoint(save_checkpoint(root / f"{outputs}-{seed}", head=head, num_labels=outputs, seed=seed))
            for seed in range(2)
        ]
        for outputs, head in heads.items()
    }
    texts = [(f"{word} film", *more) for word in WORDS for more in ((), ("good film",))]
    for checkpoint in (*found[2], *found[3]):
        checkpoint.model.classifier.bias -= torch.from_numpy(logits_of(checkpoint, texts).mean(axis=0))
    return found


def columns_of(task):
    return task.text_columns or ("text",)


def outputs_of(task):
    return 1 if task.kind == "regression" else len(task.label_names or "ab")


def concordance(ours, theirs):
    """Lin's coefficient, as his paper writes it."""
    shared = 2 * np.cov(ours, theirs, bias=True)[0, 1]
    return shared / (ours.var() + theirs.var() + (ours.mean() - theirs.mean()) ** 2)


def rows_of(task):
    """Nine samples whose labels take every value of the task."""
    labels = [i / 2 for i in range(9)] if task.kind == "regression" else [i % outputs_of(task) for i in range(9)]
    texts = [{c: f"{word} {'good' * (n == 1)} film" for n, c in enumerate(columns_of(task))} for word in WORDS]
    return [text | {task.label_column: label} for text, label in zip(texts, labels, strict=True)]


@torch.no_grad()
def logits_of(checkpoint, texts):
    """Of samples fed one by one: (N, outputs)."""
    tokenizer = checkpoint.input.tokenizer()
    return np.stack([checkpoint.model(**tokenizer(*each, return_tensors="pt")).logits[0].numpy() for each in texts])


def by_hand(metric, logits, labels):
    """A metric by its textbook formula; of two classes, where that matters."""
    if metric in ("pearson", "spearman"):
        return getattr(stats, f"{metric}r")(logits[:, 0], labels).statistic
    if metric == "mse":
        return ((logits[:, 0] - labels) ** 2).mean()
    predicted = logits.argmax(axis=1)
    assert len(set(predicted)) > 1, "or the metric says little"
    right, wrong = ((predicted == labels), (predicted != labels))
    if metric == "accuracy":
        return right.mean()
    if metric == "matthews":
        return np.corrcoef(predicted, labels)[0, 1]
    assert metric == "f1"
    hits = (right & (labels == 1)).sum()
    return 2 * hits / (2 * hits + wrong.sum())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_task_is_measured_and_compared(task, tmp_path, checkpoints):
    rows = rows_of(task)
    path = write_rows(tmp_path / "d.jsonl", rows)
    samples = load_samples(DataSpec(path=path, known=task, role="evaluation"))
    mine, theirs = checkpoints[outputs_of(task)]
    result = evaluate_samples(mine, Exam(samples, task, OPTIONS), theirs)
    labels = np.array([row[task.label_column] for row in rows])
    logits, others = (logits_of(c, [[row[name] for name in columns_of(task)] for row in rows]) for c in (mine, theirs))
    assert list(result.metrics) == list(task.metrics)
    assert result.metrics == {name: pytest.approx(by_hand(name, logits, labels), abs=1e-5) for name in task.metrics}
    first = task.metrics[0]
    assert result.metric.name == result.against.metric.name == first
    assert result.metric.value == result.metrics[first]
    assert result.against.metric.value == pytest.approx(by_hand(first, others, labels), abs=1e-5)
    assert result.against.drop == pytest.approx(result.against.metric.value - result.metric.value)
    same = (logits.argmax(axis=1) == others.argmax(axis=1)).mean()
    agreement = concordance(logits[:, 0], others[:, 0]) if task.kind == "regression" else same
    assert result.against.agreement == pytest.approx(agreement, abs=1e-6)


def test_models_of_different_outputs_are_not_compared(tmp_path, checkpoints):
    path = write_rows(tmp_path / "d.jsonl", [{"sentence": "a b"}])
    samples = load_samples(DataSpec(path=path, role="evaluation"))
    with pytest.raises(DataError, match="different things: categorical, against real"):
        evaluate_samples(checkpoints[2][0], Exam(samples, None, OPTIONS), checkpoints[1][0])


# Tasks that do not fit


def test_every_kind_of_head_says_what_it_is_for():
    found = {name: (head.purpose, head.purpose_by_problem_type) for name, head in known_heads().items()}
    regression = {"regression": "regression", "multi_label_classification": "multi-label"}
    assert found == {
        "AutoModelForSequenceClassification": ("classification", regression),
        "AutoModelForImageClassification": ("classification", regression),
        "AutoModelForUniversalSegmentation": ("semantic-segmentation", {}),
        "AutoModelForSemanticSegmentation": ("semantic-segmentation", {}),
        "timm.create_model": ("classification", {}),
        "timm.create_model(num_classes=0)": ("similarity", {}),
        "AutoModelForTokenClassification": ("token-classification", {}),
        "AutoModelForMaskedLM": ("fill-mask", {}),
        "AutoModelForPreTraining": ("fill-mask", {}),
        "AutoModelForNextSentencePrediction": ("classification", {}),
        "AutoModelForMultipleChoice": ("multiple-choice", {}),
        "AutoModelForCausalLM": ("next-token-prediction", {}),
        "AutoModelForQuestionAnswering": ("question-answering", {}),
        "AutoModel": ("similarity", {}),
    }
    assert {*get_args(Kind)} - {*SERVING} < {*get_args(Purpose)}
    assert {purpose for served in SERVING.values() for purpose in served} < {*get_args(Purpose)}
    for head in known_heads().values():
        with pytest.raises(ValidationError, match="purpose"):
            HeadRule.model_validate(head.model_dump(exclude={"purpose"}))


MODELS = {
    "classes": {"head": "classes", "num_labels": 2},
    "labels": {"head": "labels"},
    "one-label": {"head": "labels", "num_labels": 1},
    "regression": {"head": "regression"},
    "two-numbers": {"head": "regression", "num_labels": 2, "problem_type": "regression"},
    "encoder": {"head": "base"},
    "answers": {"head": "answers"},
    "tokens": {"head": "tokens"},
    "masked": {"head": "masked"},
    "pretrained": {"head": "pretraining"},
    "choices": {"head": "choices"},
    "decoder": {"family": "llama", "head": "next"},
    "sight": None,
}
"""Tiny models for each purpose, of both modalities; None for an image classifier."""

ONE_OF_EACH = {
    "sst2": {"classes"},
    "classification": {"classes"},
    "multi-label": {"labels", "one-label"},
    "stsb": {"regression"},
    "regression": {"regression", "two-numbers"},
    "token-classification": {"tokens"},
    "question-answering": {"answers"},
    "stsb-cosine": {"encoder"},
    "squad": {"answers"},
    "masked-lm": {"masked", "pretrained"},
    "wikitext2": {"decoder"},
    "lambada": {"decoder"},
    "imagefolder": {"sight"},
}
"""A task of every kind and modality, and the models that it fits."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    folders = {
        name: save_images(root / name, "vit") if options is None else save_checkpoint(root / name, **options)
        for name, options in MODELS.items()
    }
    return {name: load_checkpoint(folder) for name, folder in folders.items()}


@pytest.fixture
def unread(here):
    """A missing file for --data, a broken file of texts, and a folder without images: whoever reads them fails."""
    Path("broken.jsonl").write_text("{")
    Path("empty").mkdir()
    return here


def reason(checkpoint, task):
    """The start of the message that refuses a task for a model."""
    modality = load_task(task).input
    if modality != checkpoint.input.kind:
        article = "an" if modality == "image" else "a"
        return f"{task} is {article} {modality} task, but this model takes {checkpoint.input.kind}s"
    named = f"{checkpoint.name} is a {checkpoint.blueprint.model_class} for {checkpoint.blueprint.purpose}"
    return f"The task {task} is a {load_task(task).kind} task, but {named}"


@pytest.mark.parametrize("task", ONE_OF_EACH)
@pytest.mark.parametrize("name", MODELS)
def test_a_task_that_does_not_fit_is_refused_before_data_is_read(zoo, unread, name, task):
    checkpoint = zoo[name]
    expected = "nowhere does not exist" if name in ONE_OF_EACH[task] else reason(checkpoint, task)
    for run in (
        lambda: optin_cli.evaluate(checkpoint, task, data=Path("nowhere"), options=EvalOptions(latency_runs=0)),
        lambda: optin_cli.sweep(
            checkpoint, task, "broken.jsonl", "out", SweepOptions(keep_flops=(0.5,)), data=Path("nowhere")
        ),
    ):
        with pytest.raises(DataError) as caught:
            run()
        assert caught.value.message.startswith(expected), caught.value.message
    assert set(tree(unread)) == {"broken.jsonl", "empty"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_OF_EACH["sst2"]])
def test_the_other_model_must_fit_too(zoo, unread, name):
    with pytest.raises(DataError) as caught:
        optin_cli.evaluate(zoo["classes"], "sst2", data=Path("nowhere"), against=zoo[name], options=OPTIONS)
    assert caught.value.message.startswith(reason(zoo[name], "sst2"))


def test_outputs_are_counted_where_the_kind_fits(zoo, unread):
    for name, task, words in (
        ("regression", "sst2", "for regression."),
        ("one-label", "sst2", "for multi-label."),
        ("two-numbers", "stsb", "for regression with 2 outputs."),
    ):
        with pytest.raises(DataError) as caught:
            optin_cli.evaluate(zoo[name], task, data=Path("nowhere"), options=OPTIONS)
        assert caught.value.message.endswith(words)


def test_what_no_task_measures_needs_one_by_name(zoo, here):
    data = write_rows(here / "d.jsonl", [{"text": "a b", "label": 0}])
    with pytest.raises(DataError, match="no task that names a metric to measure d") as caught:
        optin_cli.evaluate(zoo["encoder"], data=data, options=OPTIONS)
    assert "--task" in caught.value.hint


def test_a_decoder_is_no_classifier(zoo, here, monkeypatch):
    monkeypatch.setattr(type(zoo["decoder"].model), "forward", lambda *_a, **_k: pytest.fail("the model ran"))
    data = write_rows(here / "d.jsonl", [{"sentence": "a b", "label": 0}, {"sentence": "good", "label": 1}])
    before = tree(here)
    run = call("eval", zoo["decoder"].blueprint.folder, "--task", "sst2", "--data", data, "--latency-runs", 0)
    assert (run.code, run.out) == (1, "")
    assert "decoder is a LlamaForCausalLM for next-token-prediction" in run.err and "--against" in run.err
    assert tree(here) == before


NO_LOSS = "needs the loss of one label per sample, but"

CALIBRATED = {
    "classes": [("broken.jsonl", None), ("sst2", None), ("stsb", "The task stsb is a regression task")],
    "labels": [("broken.jsonl", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "one-label": [("broken.jsonl", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "regression": [("broken.jsonl", None), ("stsb", None), ("sst2", "The task sst2 is a classification task")],
    "two-numbers": [("broken.jsonl", NO_LOSS), ("stsb", "with 2 outputs.")],
    "encoder": [
        ("broken.jsonl", "encoder puts out sentence embeddings; the labels of broken.jsonl name no classes"),
        ("stsb-cosine", None),
        ("sst2", "The task sst2 is a classification task"),
    ],
    "answers": [("broken.jsonl", NO_LOSS), ("squad", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "tokens": [("broken.jsonl", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "masked": [("broken.jsonl", NO_LOSS), ("masked-lm", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "choices": [("broken.jsonl", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "decoder": [("broken.jsonl", NO_LOSS), ("sst2", "The task sst2 is a classification task")],
    "sight": [("empty", None), ("imagefolder", None), ("sst2", "sst2 is a text task")],
}
"""Calibration data, and why its labels are of no use to the model; None where they are, so that it is read."""


@pytest.mark.parametrize(
    ("name", "calib", "words"), [(name, *case) for name, table in CALIBRATED.items() for case in table]
)
def test_labels_that_do_not_fit_are_refused_before_data_is_read(zoo, unread, name, calib, words):
    read = {"broken.jsonl": "broken.jsonl is not valid JSON", "empty": "holds no images"}.get(
        calib, "nowhere does not exist"
    )
    data = None if Path(calib).exists() else "nowhere"
    with pytest.raises((DataError, UsageError)) as caught:
        optin_cli.score(zoo[name], DataSpec(source=calib, path=data), options=ScoreOptions(criterion="fisher"))
    assert (words or read) in caught.value.message, caught.value.message
    if words == NO_LOSS:
        assert caught.value.message.startswith("The criterion fisher") and "trajectory" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "task", "calib", "recipe", "words"),
    [
        ("answers", "squad", "broken.jsonl", "kwon", f"The recipe kwon {NO_LOSS}"),
        ("answers", "squad", "broken.jsonl", "optin", None),
        ("labels", "multi-label", "broken.jsonl", "fisher", f"The recipe fisher {NO_LOSS}"),
        ("classes", "sst2", "stsb", "optin,fisher", "The task stsb is a regression task"),
        ("classes", "sst2", "stsb", "optin", None),
        ("classes", "sst2", "imagefolder", "optin", "imagefolder is an image task"),
        ("encoder", "stsb-cosine", "broken.jsonl", "fisher", None),
    ],
)
def test_sweeps_ask_what_labels_are_of_before_data_is_read(zoo, unread, name, task, calib, recipe, words):
    with pytest.raises(DataError) as caught:
        optin_cli.sweep(
            zoo[name],
            task,
            calib,
            "out",
            SweepOptions(tuple(recipe.split(",")), keep_flops=(0.5,)),
            data=Path("nowhere"),
        )
    assert caught.value.message.startswith(words or "nowhere does not exist"), caught.value.message


def test_evaluation_of_a_pruned_model_against_its_original(bert, texts, tmp_path):
    """Distances of what both put out for each text alone; sizes as the manifest has them."""
    mask = make_mask(bert, {"encoder.0.head": [1], "encoder.1.neuron": range(4), "encoder.2.head": []}, seq_len=32)
    manifest = optin_cli.prune(bert, mask, tmp_path / "small")
    small = load_checkpoint(tmp_path / "small")
    options = EvalOptions(latency_runs=0, seq_len=32, batch_size=4)
    found = optin_cli.evaluate(small, data=texts, against=bert, options=options).against
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    tokenizer = bert.input.tokenizer()
    with torch.no_grad():
        mine, theirs = (
            torch.cat([c.model(**tokenizer(text, return_tensors="pt")).logits.log_softmax(dim=-1) for text in rows])
            for c in (small, bert)
        )
    assert found.agreement == pytest.approx((mine.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean().item())
    assert found.kl == pytest.approx((theirs.exp() * (theirs - mine)).sum(dim=-1).mean().item(), rel=1e-3)
    assert found.kl > 1e-3
    assert found.macs_ratio == manifest.after.macs / manifest.before.macs < 1
    assert found.parameters_ratio == manifest.after.parameters / manifest.before.parameters < 1
