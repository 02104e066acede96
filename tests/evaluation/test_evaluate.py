"""Every task of one label a sample runs in evaluation, on tiny models."""

import pytest
from helpers.models import save_checkpoint
from helpers.running import write_rows

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError
from optin_cli.evaluation.evaluate import Exam, evaluate_samples
from optin_cli.options.evaluation import EvalOptions
from optin_cli.tasks.registry import load_task, task_names

OPTIONS = EvalOptions(latency_runs=0, batch_size=4, seq_len=8)
TEXT_TASKS = [task for task in map(load_task, task_names()) if task.input == "text"]
TASKS = [task for task in TEXT_TASKS if task.kind in ("classification", "regression")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    heads = {1: "regression", 2: "classes", 3: "classes"}
    folders = {n: save_checkpoint(root / str(n), head=head, num_labels=n) for n, head in heads.items()}
    return {n: load_checkpoint(folder) for n, folder in folders.items()}


def rows_of(task):
    """Nine samples whose labels take every value of the task."""
    words = "abcdefghi"
    labels = [i / 2 for i in range(9)] if task.label_names is None else [i % len(task.label_names) for i in range(9)]
    texts = [{c: f"{word} {'good' * (n == 1)} film" for n, c in enumerate(task.text_columns)} for word in words]
    return [text | {task.label_column: label} for text, label in zip(texts, labels, strict=True)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_task_runs_and_compares(task, tmp_path, checkpoints):
    path = write_rows(tmp_path / "d.jsonl", rows_of(task))
    samples = load_samples(DataSpec(path=path, known=task, role="evaluation"))
    checkpoint = checkpoints[len(task.label_names or "1")]
    result = evaluate_samples(checkpoint, Exam(samples, task, OPTIONS), checkpoint)
    assert list(result.metrics) == list(task.metrics)
    assert result.metric.name == task.metrics[0]
    assert result.against.drop == 0
    assert result.against.agreement == (None if task.kind == "regression" else 1)


def test_models_of_different_outputs_are_not_compared(tmp_path, checkpoints):
    path = write_rows(tmp_path / "d.jsonl", [{"sentence": "a b"}])
    samples = load_samples(DataSpec(path=path, role="evaluation"))
    with pytest.raises(DataError, match="different things: 1 and 0"):
        evaluate_samples(checkpoints[2], Exam(samples, None, OPTIONS), checkpoints[1])
