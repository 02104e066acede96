"""Evaluate on tasks of EleutherAI's lm-evaluation-harness.

The harness reads its data, builds its prompts and measures; optin hands it the model and records what it found.
"""

import contextlib
import difflib
import functools
import importlib.metadata
import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optin_cli.artifacts.base import Options, Source
from optin_cli.artifacts.evaluation import Comparison, Evaluation, Measure
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.text_input import TextInput
from optin_cli.errors import CheckpointError, DataError, first_line
from optin_cli.evaluation.generation import generates, what_it_is
from optin_cli.files import sha256_of
from optin_cli.options.evaluation import EvalOptions
from optin_cli.tasks.harness import PACKAGE, PREFIX, TASK_FILES, HarnessError

REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
"""Methods of the harness's models that show a bar of their own."""


@dataclass(frozen=True)
class Outcome:
    """What the harness found of one model.

    values: metrics in the task's order. error: standard error of the first. higher: whether more of it is better.
    samples: how many, and sha256: over the documents, prompts and answers. split: which of the dataset. constants:
    versions and the examples in each prompt.
    """

    values: dict[str, float]
    error: float | None
    higher: bool
    samples: int
    sha256: str
    split: str
    constants: Options


def with_harness(
    result: Evaluation, task: str, checkpoint: Checkpoint, against: Checkpoint | None, options: EvalOptions
) -> Evaluation:
    """The evaluation of sizes and speed with what the harness found of the model, and of the one to compare with.

    Raises DataError: a model does not predict next tokens. HarnessError: the harness cannot run the task.
    """
    for one in filter(None, (checkpoint, against)):
        _require_generating(one, task)
    mine = run_harness(checkpoint, task, options)
    theirs = None if against is None else run_harness(against, task, options)
    first, value = next(iter(mine.values.items()))
    task = recorded_name(task)
    return result.model_copy(
        update={
            "task": task,
            "split": mine.split,
            "samples": mine.samples,
            "options": {**result.options, **mine.constants},
            "inputs": {**result.inputs, "data": Source(name=task, sha256=mine.sha256)},
            "metric": Measure(name=first, value=value),
            "metrics": mine.values,
            "standard_error": mine.error,
            "against": result.against and _compared(result.against, mine, theirs),
        }
    )


def recorded_name(task: str) -> str:
    """What artifacts call a task: a file goes by its name, wherever it lies."""
    name = task.removeprefix(PREFIX)
    return f"{PREFIX}{Path(name).name}" if name.endswith(TASK_FILES) else task


def _require_generating(checkpoint: Checkpoint, task: str) -> None:
    if not generates(checkpoint):
        raise DataError(
            f"{task} is for causal language models, but {what_it_is(checkpoint)}.",
            hint="Pass a checkpoint of a causal language model, or a --task that fits this one.",
        )


def _compared(comparison: Comparison, mine: Outcome, theirs: Outcome | None) -> Comparison:
    if theirs is None:
        return comparison
    first = next(iter(mine.values))
    worse = theirs.values[first] - mine.values[first]
    if not mine.higher:
        worse = -worse / theirs.values[first] if theirs.values[first] else -worse
    return comparison.model_copy(
        update={
            "metric": Measure(name=first, value=theirs.values[first]),
            "metrics": theirs.values,
            "drop": worse,
            "relative_drop": not mine.higher and theirs.values[first] != 0,
        }
    )


def run_harness(checkpoint: Checkpoint, task: str, options: EvalOptions) -> Outcome:
    """Evaluate one model on a task of the harness, or a group of them, on the first `options.samples` of each."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = task.removeprefix(PREFIX)
    own = name.endswith(TASK_FILES)
    if own:
        manager = TaskManager(include_path=str(Path(name).parent), include_defaults=False)
    else:
        manager = TaskManager()
        _require_known(name, manager.all_tasks)
    try:
        with preserved_randomness(), _quiet():
            found = simple_evaluate(
                model=_as_harness_model(checkpoint, options),
                tasks=[name],
                task_manager=manager,
                num_fewshot=options.num_fewshot,
                limit=options.samples,
            )
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, ImportError, AssertionError) as error:
        raise HarnessError(
            f"The lm-evaluation-harness cannot run {name} on {checkpoint.name}: {first_line(error)}",
            hint="Its data must lie in the cache of datasets where there is no network."
            if isinstance(error, OSError)
            else None,
        ) from error
    return _read(found or {}, name)


def _require_known(name: str, known: list[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    lead = f"Did you mean {' or '.join(near)}? " if near else ""
    raise DataError(
        f"The lm-evaluation-harness has no task {name!r}.",
        hint=f"{lead}lm-eval ls tasks lists all {len(known):,}; a task file of your own is {PREFIX}PATH.yaml.",
    )


def _as_harness_model(checkpoint: Checkpoint, options: EvalOptions) -> Any:
    """The model behind the harness's interface, without its bars."""
    from lm_eval.models.huggingface import HFLM

    takes = checkpoint.input
    if not isinstance(takes, TextInput):
        raise TypeError(f"{checkpoint.name} takes {takes.kind}")
    tokenizer = takes.tokenizer()
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name} has neither a begin nor an end token; the lm-evaluation-harness "
            "begins every text with one of them.",
            hint="Name it in tokenizer_config.json: eos_token.",
        )
    model = HFLM(pretrained=checkpoint.model, tokenizer=tokenizer, batch_size=options.batch_size)
    for method in REQUESTS:
        setattr(model, method, functools.partial(getattr(model, method), disable_tqdm=True))
    return model


def _read(found: dict[str, Any], name: str) -> Outcome:
    """What is of interest in the results of a task, or of a group of tasks."""
    key = name if name in found["results"] else next(iter(found["results"]))
    raw = found["results"][key]
    values: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    higher: dict[str, bool] = {}
    for label, value in raw.items():
        metric, _, kept = label.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        shown = metric if kept == "none" else f"{metric} ({kept})"
        error = raw.get(f"{metric}_stderr,{kept}")
        values[shown] = float(value)
        errors[shown] = float(error) if isinstance(error, (int, float)) else None
        higher[shown] = found["higher_is_better"].get(key, {}).get(metric) is not False
    if not values:
        raise HarnessError(f"The lm-evaluation-harness found no value of {name}.")
    first = next(iter(values))
    leaves = list(found["samples"].values())
    hashes = [str(one[part]) for leaf in leaves for one in leaf for part in ("doc_hash", "prompt_hash", "target_hash")]
    configs = found["configs"].values()
    splits = dict.fromkeys(str(one.get("test_split") or one.get("validation_split")) for one in configs)
    return Outcome(
        values=values,
        error=errors[first],
        higher=higher[first],
        samples=sum(int(count["effective"]) for count in found["n-samples"].values()),
        sha256=sha256_of("\n".join(hashes).encode()),
        split=", ".join(splits),
        constants={
            PACKAGE: importlib.metadata.version(PACKAGE),
            "task_version": str(found["versions"].get(key)),
            "num_fewshot": found["n-shot"].get(key),
        },
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from stdout, which is for results, and from telling what holds of any model in memory."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Bring the global random generators, which the harness seeds, back to where they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
