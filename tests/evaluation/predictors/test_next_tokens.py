"""Models that continue a text are measured by what they make of each token of it, window by window."""

import json
import math

import pytest
import torch
from helpers.models import save_checkpoint
from helpers.running import call, done, write_rows

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation.distances import distances
from optin_cli.evaluation.evaluate import require_drop
from optin_cli.evaluation.predictors import next_tokens
from optin_cli.model import readout
from optin_cli.options.evaluation import EvalOptions

TEXT = " ".join("abcdefghijklmnopqrst good bad film abcabc".replace(" ", "")) + " good a bad film b"
OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=12)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folders = [save_checkpoint(root / f"llama-{seed}", "llama", "next", seed=seed) for seed in range(2)]
    return [load_checkpoint(folder) for folder in folders]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@torch.no_grad()
def predicted_alone(checkpoint, length=12, stride=None):
    """Logits and truth of every token, window by window, by the loss's own definition."""
    ids = checkpoint.input.tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    room, counted, found = length - 1, 0, []
    for start in range(0, len(ids), stride or room):
        row = ids[start : start + room]
        logits = checkpoint.model(input_ids=torch.tensor([[2, *row]]))["logits"][0]
        found += [(logits[place], token) for place, token in enumerate(row) if place > 0 and start + place >= counted]
        counted = start + len(row)
        if counted == len(ids):
            break
    return torch.stack([logits for logits, _ in found]), torch.tensor([token for _, token in found])


@pytest.mark.parametrize("stride", [None, 4])
@pytest.mark.parametrize("most", [99 * 2, 2**24])
def test_values_are_those_of_windows_one_by_one(models, data, monkeypatch, stride, most):
    monkeypatch.setattr(readout, "MOST", most)
    options = EvalOptions(latency_runs=0, batch_size=2, seq_len=12, stride=stride)
    result = optin_cli.evaluate(models[0], "causal-lm", data, against=models[1], options=options)
    (mine, truth), (theirs, _) = (predicted_alone(model, stride=stride) for model in models)
    assert list(result.metrics) == ["perplexity", "accuracy"]
    assert result.metric.value == pytest.approx(math.exp(torch.nn.functional.cross_entropy(mine, truth)), rel=1e-4)
    assert result.metrics["accuracy"] == pytest.approx(float((mine.argmax(-1) == truth).float().mean()))
    assert result.tokens == len(truth) and result.standard_error > 0
    assert (result.against.agreement, result.against.kl) == pytest.approx(
        distances(mine, theirs, "categorical"), rel=1e-4
    )
    assert (result.options["max_length"], result.options["stride"]) == (12, stride)


def test_a_task_of_the_users_own_data_is_found(models, data):
    named = optin_cli.evaluate(models[0], "causal-lm", data, options=OPTIONS)
    found = optin_cli.evaluate(models[0], data=data, options=OPTIONS)
    assert (found.task, found.metrics) == ("causal-lm", named.metrics)
    once = optin_cli.evaluate(models[0], data=data, options=EvalOptions(latency_runs=0))
    assert (once.samples, once.workload.seq_len) == (1, 64), "the default is lowered to what the model holds"


def test_a_drop_is_a_share_of_the_originals_perplexity(models, data):
    results = [optin_cli.evaluate(a, data=data, against=b, options=OPTIONS) for a, b in (models, models[::-1])]
    worse = max(results, key=lambda one: one.against.drop)
    rise = worse.metric.value / worse.against.metric.value - 1
    assert worse.against.drop == pytest.approx(rise) and worse.against.relative_drop
    assert require_drop(worse, rise + 1e-6) is None
    assert f"perplexity rose by {rise:+.1%} ".replace("+", "") in require_drop(worse, rise - 1e-6)


def test_distributions_are_compared_at_the_first_windows(models, data, monkeypatch):
    monkeypatch.setattr(next_tokens, "COMPARED", 1)
    seen = []
    real = next_tokens.read_out
    monkeypatch.setattr(next_tokens, "read_out", lambda *a: seen.append(a[2].size) or real(*a))
    one = EvalOptions(latency_runs=0, batch_size=1, seq_len=12)
    result = optin_cli.evaluate(models[0], data=data, against=models[1], options=one)
    assert len(seen) == 2 * result.samples and result.options["compared_windows"] == 1
    monkeypatch.setattr(next_tokens, "KEPT", 0)
    seen.clear()
    again = optin_cli.evaluate(models[0], data=data, against=models[1], options=one)
    assert len(seen) == 2 * result.samples + 2 and again == result


def test_hidden_states_are_kept_where_models_are_compared(models, data, monkeypatch):
    held = []
    real = next_tokens.States.of
    monkeypatch.setattr(next_tokens.States, "of", lambda *given: held.append(real(*given)) or held[-1])
    optin_cli.evaluate(models[0], data=data, options=OPTIONS)
    assert not held[0].kept
    optin_cli.evaluate(models[0], data=data, against=models[1], options=OPTIONS)
    assert [one.checkpoint.name for one in held[1:]] == ["llama-0", "llama-1"]
    assert all([*one.kept] == [tuple(batch.rows) for batch in one.first] != [] for one in held[1:])


def test_last_words_are_right_if_every_token_is(models, tmp_path):
    model, passages = models[0], ["a b c d", "good film a bad", "c d e f films"]
    path = write_rows(tmp_path / "l.jsonl", [{"text": text} for text in passages])
    result = optin_cli.evaluate(model, "lambada", path, options=OPTIONS)
    losses, right, tokens = [], [], 0
    tokenizer = model.input.tokenizer()
    for text in passages:
        before, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text.rpartition(" ")[0], text))
        own = whole[len(before) :]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([[2, *whole]]))["logits"][0, -len(own) - 1 : -1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(own), reduction="sum")))
        right.append(logits.argmax(-1).tolist() == own)
        tokens += len(own)
    assert result.metrics["last_word_perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)
    assert (result.metric.value, result.tokens) == (pytest.approx(sum(right) / 3), tokens)
    with pytest.raises(DataError, match="no last word"):
        optin_cli.evaluate(model, "lambada", write_rows(tmp_path / "o.jsonl", [{"text": "a"}]), options=OPTIONS)


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("sst2", OPTIONS, DataError, "is a classification task, but llama-0 is a LlamaForCausalLM"),
        ("causal-lm", EvalOptions(latency_runs=0, seq_len=65), UsageError, "65 is not within 1 to 64"),
        ("causal-lm", EvalOptions(latency_runs=0, max_length=65), UsageError, "65 is not within 1 to 64"),
        ("causal-lm", EvalOptions(latency_runs=0, seq_len=2), UsageError, "at least 3 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(models, data, task, options, error, message):
    with pytest.raises(error) as caught:
        optin_cli.evaluate(models[0], task, data, options=options)
    assert message in caught.value.message


def test_from_text_to_a_smaller_model_by_commands(here, models):
    folder = models[0].blueprint.folder
    (here / "train.txt").write_text("\n".join([TEXT, TEXT[::-1]] * 8))
    (here / "text.txt").write_text(TEXT)
    common = ("--samples", 16, "--batch-size", 4, "--seq-len", 12)
    done("score", folder, "--calib", "train.txt", "--probes", 1, *common, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", 0.8, "-o", "m.json")
    done("prune", folder, "--mask", "m.json", "--calib", "train.txt", "--samples", 16, "-o", "small")
    data = ("--data", "text.txt", "--latency-runs", 0)
    run = done("eval", "small", "--against", folder, *data, "--seq-len", 12, "-o", "e.json")
    found = json.loads((here / "e.json").read_text())
    assert (found["task"], found["metric"]["name"]) == ("causal-lm", "perplexity")
    assert f"{found['tokens']} tokens predicted" in run.err.replace("\n", " ")
    gate = call("eval", "small", "--against", folder, *data, "--seq-len", 12, "--max-drop", 0, "-o", "g.json")
    assert gate.code == (3 if found["against"]["drop"] > 0 else 0)
    done(
        "sweep", folder, "--calib", "train.txt", "--data", "text.txt", "--keep-flops", 0.8, "--samples", 16,
        "--batch-size", 4, "--seq-len", 12, "--latency-runs", 0, "-o", "swept",
    )  # fmt: skip
    record = json.loads((here / "swept" / "sweep.json").read_text())
    (point,), value = record["points"], record["baseline"]["value"]
    assert record["relative_drop"] and point["drop"] == pytest.approx(point["value"] / value - 1)
    done("report", "swept", "-o", "r.html")
    assert f"{point['drop']:+.1%}".replace("-", "\N{MINUS SIGN}") in (here / "r.html").read_text()
