"""Masked language models are measured by what they make of each masked token, in batches that fit in memory."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.models import save_checkpoint
from helpers.running import call, done, write_rows

import optin_cli
from optin_cli.checkpoints import text_input
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import DataError
from optin_cli.evaluation.distances import distances
from optin_cli.evaluation.evaluate import require_drop
from optin_cli.model.forward import hooks
from optin_cli.options.evaluation import EvalOptions

LONG = " ".join("abcdefghijklmnopqrst" * 2)
TEXTS = ["a b c d e", "good film", "", "zzz", LONG]
"""The fourth is an unknown word; the last has more tokens than a row of 16."""
OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=8, max_length=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two masked language models with the same tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return [load_checkpoint(save_checkpoint(root / f"bert-{seed}", head="masked", seed=seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "texts.jsonl", [{"sentence": text} for text in TEXTS])


@torch.no_grad()
def filled_alone(checkpoint, length=16):
    """Logits and truth of every token, each masked alone, without batches or padding."""
    tokenizer, found = checkpoint.input.tokenizer(), []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), length - 2):
            row = torch.tensor([2, *ids[start : start + length - 2], 3])
            for place, token in enumerate(row.tolist()):
                if token not in tokenizer.all_special_ids:
                    masked = row.clone()
                    masked[place] = tokenizer.mask_token_id
                    found.append((checkpoint.model(input_ids=masked[None])["logits"][0, place], token))
    return torch.stack([logits for logits, _ in found]), torch.tensor([token for _, token in found])


def test_values_are_those_of_tokens_masked_one_by_one(models, data):
    options = replace(OPTIONS, mask_every=100)
    result = optin_cli.evaluate(models[0], "masked-lm", data, against=models[1], options=options)
    (mine, truth), (theirs, _) = map(filled_alone, models)
    assert len(truth) == 5 + 2 + 40
    loss = torch.nn.functional.cross_entropy(mine, truth)
    assert list(result.metrics) == ["pseudo_perplexity", "accuracy"]
    assert result.metric.value == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.metrics["accuracy"] == pytest.approx(float((mine.argmax(-1) == truth).float().mean()))
    assert (result.against.agreement, result.against.kl) == pytest.approx(
        distances(mine, theirs, "categorical"), rel=1e-4
    )
    assert (result.options["mask_every"], result.options["max_length"]) == (100, 16)
    assert result.standard_error > 0


def test_lower_perplexity_is_better(models, data):
    result = optin_cli.evaluate(models[0], "masked-lm", data, against=models[1], options=OPTIONS)
    change = result.metric.value - result.against.metric.value
    assert result.against.drop == pytest.approx(change)
    assert (require_drop(result, 0.0) is None) is (change <= 0)
    back = optin_cli.evaluate(models[1], "masked-lm", data, against=models[0], options=OPTIONS)
    worse = max((result, back), key=lambda one: one.against.drop)
    assert require_drop(worse, 0.0).startswith("pseudo_perplexity rose by")


def test_without_a_task_models_are_compared_at_masked_tokens(models, data):
    measured = optin_cli.evaluate(models[0], "masked-lm", data, against=models[1], options=OPTIONS)
    compared = optin_cli.evaluate(models[0], None, data, against=models[1], options=OPTIONS)
    assert (compared.metric, compared.against.agreement) == (None, measured.against.agreement)
    assert compared.against.kl == measured.against.kl > 0
    same = optin_cli.evaluate(models[0], None, data, against=models[0], options=OPTIONS)
    assert (same.against.agreement, same.against.kl) == (1.0, 0.0)
    with pytest.raises(DataError, match="no task that names a metric"):
        optin_cli.evaluate(models[0], None, data, options=OPTIONS)


def test_outputs_of_a_batch_stay_below_the_limit(models, data, monkeypatch):
    whole = optin_cli.evaluate(models[0], "masked-lm", data, options=OPTIONS)
    monkeypatch.setattr(text_input, "MOST_LOGITS", 16 * 99)
    rows = []
    with hooks() as hook:
        hook.after(models[0].model, lambda _model, _inputs, found: rows.append(len(found["logits"])))
        single = optin_cli.evaluate(models[0], "masked-lm", data, options=OPTIONS)
    assert set(rows) == {1}
    assert single.metrics == pytest.approx(whole.metrics)


@pytest.mark.parametrize(("family", "head"), [("bert", "pretraining"), ("albert", "pretraining"), ("llama", "next")])
def test_other_models_of_language_are_compared(tmp_path, data, family, head):
    mine, theirs = (
        load_checkpoint(save_checkpoint(tmp_path / f"m{seed}", family, head, seed=seed)) for seed in range(2)
    )
    result = optin_cli.evaluate(mine, None, data, against=theirs, options=OPTIONS)
    assert 0 <= result.against.agreement < 1 and result.against.kl > 0
    if head == "pretraining":
        assert optin_cli.evaluate(mine, "masked-lm", data, options=OPTIONS).metric.value > 1


def test_texts_without_a_token_to_mask_are_refused(tmp_path, models):
    path = write_rows(tmp_path / "d.jsonl", [{"text": ""}, {"text": "zzz"}])
    with pytest.raises(DataError, match="no token to mask"):
        optin_cli.evaluate(models[0], "masked-lm", path, options=OPTIONS)


def test_commands_take_running_text(here, models):
    folder, text = models[0].blueprint.folder, "\n".join(["a b c d", "good film a", "c d e f g h"] * 6)
    (here / "text.txt").write_text(text)
    done("eval", folder, "--task", "masked-lm", "--data", "text.txt", "--latency-runs", 0, "-o", "e.json")
    found = json.loads((here / "e.json").read_text())
    assert (found["metric"]["name"], found["options"]["mask_every"]) == ("pseudo_perplexity", 7)
    calib = ("--calib", "text.txt", "--samples", "8", "--batch-size", "4")
    done("sweep", folder, "--task", "masked-lm", "--data", "text.txt", *calib, "--keep-flops", "0.7", "-o", "swept")
    record = json.loads((here / "swept" / "sweep.json").read_text())
    point = record["points"][0]
    assert record["higher_is_better"] is False and point["drop"] == pytest.approx(
        point["value"] - record["baseline"]["value"]
    )
    run = call("eval", folder, "--task", "masked-lm", "--data", "text.txt", "--mask-every", 0)
    assert run.code == 2 and "--mask-every" in run.err
