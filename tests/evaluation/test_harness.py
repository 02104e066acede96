"""Tasks of the lm-evaluation-harness: results of a local task by hand, and tasks that cannot be run."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import call, write_rows
from tokenizers import processors

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.errors import CheckpointError, DataError
from optin_cli.evaluation.evaluate import require_drop
from optin_cli.evaluation.harness import Outcome, _compared, preserved_randomness
from optin_cli.options.evaluation import EvalOptions
from optin_cli.reporting.commands import _evaluate
from optin_cli.reporting.places import Places
from optin_cli.tasks import harness
from optin_cli.tasks.harness import HarnessError, is_harness_task

CHOICES = ["good", "bad film", "film"]
SIZES = EvalOptions(latency_runs=0)


def metric(name, **more):
    return {"metric": name, "aggregation": "mean", "higher_is_better": True, **more}


TASK = {
    "task": "films",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{start}}",
    "doc_to_choice": CHOICES,
    "doc_to_target": "{{answer}}",
    "metric_list": [metric("acc"), metric("acc_norm")],
    "metadata": {"version": 2.0},
}


def plain_tokenizer():
    """One that puts nothing around a text, as those of decoders do not behind it."""
    tokenizer = tiny_tokenizer(eos_token="[SEP]")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with two models and a task file."""
    root = tmp_path_factory.mktemp("films")
    for seed, name in enumerate(("llama", "other")):
        save_checkpoint(root / name, "llama", "next", seed=seed)
        plain_tokenizer().save_pretrained(root / name)
    rows = [{"start": f"{word} good film", "answer": n % 3} for n, word in enumerate("abcdefghij")]
    data = {"data_files": {"test": str(write_rows(root / "films.jsonl", rows))}}
    (root / "films.yaml").write_text(yaml.safe_dump(TASK | {"dataset_kwargs": data}))
    return root


@pytest.fixture
def installed():
    pytest.importorskip("lm_eval")


def rows_of(films):
    return [json.loads(line) for line in (films / "films.jsonl").read_text().splitlines()]


@torch.no_grad()
def scores_of(checkpoint, start):
    """Summed log-probabilities of each choice behind a start."""
    tokenizer, found = checkpoint.input.tokenizer(), []
    for choice in CHOICES:
        before = tokenizer(start, add_special_tokens=False).input_ids
        ids = tokenizer(f"{start} {choice}", add_special_tokens=False).input_ids
        logits = checkpoint.model(input_ids=torch.tensor([ids]))["logits"][0].log_softmax(dim=-1)
        found.append(sum(float(logits[n - 1, ids[n]]) for n in range(len(before), len(ids))))
    return np.array(found)


def accuracies(checkpoint, films):
    """Share of right choices, by log-probability and by that a character."""
    rows, lengths = rows_of(films), np.array([*map(len, CHOICES)])
    scores = [scores_of(checkpoint, row["start"]) for row in rows]
    right = [
        (s.argmax() == r["answer"], (s / lengths).argmax() == r["answer"]) for s, r in zip(scores, rows, strict=True)
    ]
    return np.array(right, dtype=float)


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("default")  # of the harness and of what it imports
def test_a_local_task_is_measured_as_by_hand(films):
    mine, theirs = (optin_cli.load(films / name) for name in ("llama", "other"))
    task = f"lm-eval:{films / 'films.yaml'}"
    result = optin_cli.evaluate(mine, task, against=theirs, options=SIZES)
    expected, other = accuracies(mine, films), accuracies(theirs, films)
    assert 0 < expected.mean() < 1, "a test in which nothing is wrong, or right, shows little"
    assert [*result.metrics] == ["acc", "acc_norm"]
    assert [*result.metrics.values()] == pytest.approx(expected.mean(axis=0))
    assert [*result.against.metrics.values()] == pytest.approx(other.mean(axis=0))
    assert result.against.drop == pytest.approx(other[:, 0].mean() - expected[:, 0].mean())
    assert result.standard_error == pytest.approx(expected[:, 0].std(ddof=1) / 10**0.5)
    assert (result.task, result.samples, result.split) == ("lm-eval:films.yaml", 10, "test")
    assert str(films) not in result.dump()
    assert result.options["task_version"] == "2.0" and result.options["num_fewshot"] == 0
    assert parse(Evaluation, result.dump(), "eval") == result
    assert (require_drop(result, result.against.drop - 0.01) or "").startswith("acc ")
    line = _evaluate(result, "e.json", Places(None, {}))
    assert "--task lm-eval:films.yaml" in line and "--data" not in line
    again = optin_cli.evaluate(mine, task, options=EvalOptions(latency_runs=0, samples=4))
    assert again.samples == 4 and again.metrics["acc"] == pytest.approx(expected[:4, 0].mean())
    assert again.inputs["data"].sha256 != result.inputs["data"].sha256


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("default")
def test_tasks_and_models_that_do_not_fit(films, made):
    model = optin_cli.load(films / "llama")
    with pytest.raises(DataError, match=r"has no task 'hellaswg'\.") as caught:
        optin_cli.evaluate(model, "lm-eval:hellaswg", options=SIZES)
    assert "Did you mean hellaswag" in caught.value.hint
    broken = films / "broken.yaml"
    broken.write_text(
        yaml.safe_dump(TASK | {"task": "broken", "dataset_kwargs": {"data_files": {"test": "none.jsonl"}}})
    )
    with pytest.raises(HarnessError, match=r"cannot run .*broken\.yaml on llama"):
        optin_cli.evaluate(model, f"lm-eval:{broken}", options=SIZES)
    task = f"lm-eval:{films / 'films.yaml'}"
    with pytest.raises(DataError, match="is for causal language models, but bert is a BertForSequenceClassification"):
        optin_cli.evaluate(made.bert, task, options=SIZES)
    tiny_tokenizer().save_pretrained(films / "llama")
    try:
        with pytest.raises(CheckpointError, match="neither a begin nor an end token"):
            optin_cli.evaluate(optin_cli.load(films / "llama"), task, options=SIZES)
    finally:
        plain_tokenizer().save_pretrained(films / "llama")


def test_what_is_refused_before_a_model_is_loaded(here, monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _: None)
    for args, words in (
        (("lm-eval:hellaswag",), 'pip install "optin-cli[lm-eval]"'),
        (("lm-eval:none.yaml",), "The task file none.yaml does not exist."),
        (("lm-eval:hellaswag", "--data", here), "lm-eval:hellaswag names its own data"),
    ):
        found = call("eval", "missing", "--task", *args)
        assert found.code in (1, 2) and words in found.err


def test_a_rise_of_a_perplexity_is_a_share(made):
    alone = optin_cli.evaluate(made.bert, against=made.bert, options=SIZES).against
    for higher, drop in ((False, 0.5), (True, -1.0)):
        mine, theirs = (Outcome({"ppl": value}, None, higher, 1, "", "test", {}) for value in (3.0, 2.0))
        found = _compared(alone, mine, theirs)
        assert (found.drop, found.relative_drop) == (drop, not higher) and found.metric.value == 2.0


def test_names_of_tasks():
    assert is_harness_task("lm-eval:hellaswag") and not is_harness_task("sst2") and not is_harness_task(None)


def test_the_global_generators_go_on_as_if_nothing_had_been():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(1))

    def seed():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    with preserved_randomness():
        draw()
        torch.manual_seed(5)
    assert draw() == expected
