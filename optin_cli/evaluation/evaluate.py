"""A checkpoint and samples in; its task metric, agreement with another model, size and speed out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from optin_cli.artifacts.base import Options, Source, Totals, Workload
from optin_cli.artifacts.evaluation import Comparison, Evaluation, Latency, Measure
from optin_cli.checkpoints.batches import read_samples, require_fit
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.synthetic_inputs import example_inputs, random_inputs, workload_of
from optin_cli.data.load import AnySamples
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.predict import Prediction, Trial
from optin_cli.evaluation.predictors.registry import run_trial
from optin_cli.exporting.load import as_evaluated, device_for
from optin_cli.model.costs import count_macs, count_parameters
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.images import ImageOptions
from optin_cli.profiling.timing import forward_latency
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.registry import load_task
from optin_cli.tasks.schema import Task
from optin_cli.version import __version__


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    samples: AnySamples | None,
    *,
    task: Task | None = None,
    against: Checkpoint | None = None,
    mine: Prediction | None = None,
    theirs: Prediction | None = None,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Measure a checkpoint.

    Args:
        samples: what to predict; None measures size and speed only.
        task: names the metrics; without it, or without labels, agreement with `against` remains.
        against: another checkpoint, timed in the same run, interleaved.
        mine, theirs: what `checkpoint` and `against` predict for the samples, where that is known already.

    Raises:
        DataError: the samples have no labels and there is nothing to compare with, or the task does not fit.
    """
    options = options or EvalOptions()
    for each in (checkpoint, against):
        if each is not None and task is not None:
            require_fit(each, task)
    workload = workload_of(checkpoint, options.seq_len)
    labelled = task is not None and samples is not None and samples.labelled
    if samples is not None and not labelled and against is None:
        what = "no labels" if task is not None else "no task that names a metric"
        raise DataError(
            f"There is {what} to measure {samples.name} by, and nothing to compare with.",
            hint="Pass --task NAME with labelled data, or --against CHECKPOINT to measure agreement.",
        )
    inputs = checkpoint.sources
    if samples is not None:
        inputs["data"] = Source(name=samples.name, sha256=samples.sha256)
        mine = mine or predict_samples(checkpoint, samples, task, options, progress)
        if against is not None:
            theirs = theirs or predict_samples(against, samples, task, options, progress)
    if against is not None:
        inputs["against"] = against.source
    latencies = _latencies([c for c in (checkpoint, against) if c is not None], options)
    recorded: Options = {
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "latency_warmup": options.latency_warmup,
        **(mine.constants if mine is not None else {}),
    }
    totals = _totals(checkpoint, workload)
    first = task.metrics[0] if task is not None and mine is not None and mine.values else None
    return Evaluation(
        optin_version=__version__,
        options=recorded,
        inputs=inputs,
        task=task.name if task is not None else None,
        split=samples.split if samples is not None else "none",
        samples=len(samples) if samples is not None else 0,
        metric=Measure(name=first, value=mine.values[first]) if first and mine else None,
        metrics=mine.values if mine is not None else {},
        standard_error=mine.error if mine is not None else None,
        workload=workload,
        totals=totals,
        latency=latencies[0] if latencies else None,
        against=None if against is None else _compare(against, totals, workload, first, mine, theirs, latencies),
    )


def predict_samples(
    checkpoint: Checkpoint, samples: AnySamples, task: Task | None, options: EvalOptions, progress: Progress
) -> Prediction:
    """Predict samples and, with a task and labels, measure them, as the task's kind demands."""
    return run_trial(Trial(checkpoint, samples, task, options, progress))


def _totals(checkpoint: Checkpoint, workload: Workload) -> Totals:
    recorded = checkpoint.recorded
    if recorded is not None:
        if recorded.workload != workload:
            raise UsageError(
                f"The MACs of {checkpoint.name} are recorded for {recorded.workload.shape}, not for {workload.shape}.",
                hint="Leave out --seq-len, or export again with that --seq-len.",
            )
        return recorded.totals
    macs, _ = count_macs(checkpoint.model, example_inputs(checkpoint, workload))
    return Totals(macs=macs, parameters=count_parameters(checkpoint.model), bytes=checkpoint.weight_bytes)


def _latencies(checkpoints: Sequence[Checkpoint], options: EvalOptions) -> list[Latency]:
    if options.latency_runs == 0:
        return []
    workload = workload_of(checkpoints[0], options.latency_length, options.latency_batch)
    latencies = forward_latency(
        [c.model for c in checkpoints],
        random_inputs(checkpoints, workload),
        workload,
        runs=options.latency_runs,
        warmup=options.latency_warmup,
    )
    return [
        found if checkpoint.recorded is None else found.model_copy(update={"runtime": checkpoint.recorded.runtime})
        for found, checkpoint in zip(latencies, checkpoints, strict=True)
    ]


def _compare(
    against: Checkpoint,
    totals: Totals,
    workload: Workload,
    metric: str | None,
    mine: Prediction | None,
    theirs: Prediction | None,
    latencies: Sequence[Latency],
) -> Comparison:
    other = _totals(against, workload)
    value = drop = agreement = kl = None
    if mine is not None and theirs is not None:
        if mine.keys != theirs.keys:
            raise DataError(
                f"{against.name} tokenizes the samples differently, so outputs cannot be compared one by one.",
                hint="Compare checkpoints that share a tokenizer.",
            )
        agreement, kl = _distances(mine.outputs, theirs.outputs)
        if metric is not None:
            value = Measure(name=metric, value=theirs.values[metric])
            sign = 1 if metrics.find_metric(metric).higher_is_better else -1
            drop = sign * (theirs.values[metric] - mine.values[metric])
    return Comparison(
        name=against.name,
        runtime="torch" if against.recorded is None else against.recorded.runtime,
        metric=value,
        drop=drop,
        agreement=agreement,
        kl=kl,
        macs_ratio=totals.macs / other.macs,
        parameters_ratio=totals.parameters / other.parameters,
        bytes_ratio=totals.bytes / other.bytes,
        latency_ratio=latencies[0].median_ms / latencies[1].median_ms if latencies else None,
    )


def _distances(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> tuple[float | None, float | None]:
    """Agreement and KL averaged over the outputs that are distributions; None when there are none."""
    if len(mine) != len(theirs):
        raise DataError(
            f"The two models put out different things: {len(mine)} and {len(theirs)} distributions a sample.",
            hint="Compare checkpoints of the same task.",
        )
    shares = [metrics.agreement(a, b) for a, b in zip(mine, theirs, strict=True)]
    divergences = [metrics.mean_kl(a, b) for a, b in zip(mine, theirs, strict=True)]
    found = [(s, k) for s, k in zip(shares, divergences, strict=True) if s is not None and k is not None]
    if not found:
        return None, None
    return sum(s for s, _ in found) / len(found), sum(k for _, k in found) / len(found)


def require_drop(evaluation: Evaluation, most: float) -> str | None:
    """What is wrong when the metric fell by more than `most`, None when it did not.

    Raises:
        UsageError: nothing was compared.
    """
    comparison = evaluation.against
    if comparison is None or comparison.drop is None or evaluation.metric is None:
        raise UsageError(
            "--max-drop needs a metric of both models, and one is missing.",
            hint="Pass --against CHECKPOINT and --task NAME with labelled data.",
        )
    if comparison.drop <= most:
        return None
    return (
        f"{evaluation.metric.name} fell by {comparison.drop:.4f} "
        f"(from {comparison.metric.value if comparison.metric else float('nan'):.4f} "
        f"to {evaluation.metric.value:.4f}), more than the {most:g} allowed."
    )


def evaluate(
    checkpoint: Checkpoint | str | Path,
    task: str | None = None,
    *,
    data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    against: Checkpoint | str | Path | None = None,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
    images: ImageOptions | None = None,
) -> Evaluation:
    """Task metric, agreement with `against`, size and speed; without task and data, size and speed alone.

    Args:
        checkpoint, against: also files that `export` wrote, which run in their own runtimes.
        images, note: as for `score`.
    """
    known = None if task is None else load_task(task)
    device = device_for(None, checkpoint, against)
    opened = as_evaluated(checkpoint, device)
    if known is not None:
        require_fit(opened, known)
    other = None if against is None else as_evaluated(against, device)
    if known is not None and other is not None:
        require_fit(other, known)
    chosen = None
    if task is not None or data is not None:
        chosen = read_samples(
            opened,
            None,
            task=known,
            data=data,
            split="evaluation",
            columns=columns,
            label_column=label_column,
            limit=samples,
            seed=seed,
            images=images,
            progress=progress,
        )
    return evaluate_checkpoint(opened, chosen, task=known, against=other, options=options, progress=progress)
