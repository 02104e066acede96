"""Evaluate a checkpoint: its task metric, agreement with another model, size and speed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.evaluation import Comparison, Evaluation, Latency, Measure
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checks import choose_task, require_fit
from optin_cli.checkpoints.inputs import random_inputs
from optin_cli.data.load import AnySamples, is_measurable, source_of
from optin_cli.data.spec import DataSpec, require_data
from optin_cli.errors import DataError, UsageError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.class_maps import agreement
from optin_cli.evaluation.distances import distances, streamed_distances
from optin_cli.evaluation.gate import Drop, Gate
from optin_cli.evaluation.generation import require_decoding, with_generation
from optin_cli.evaluation.harness import with_harness
from optin_cli.evaluation.pictures import require_drawable, write_pictures
from optin_cli.evaluation.predict import Prediction, Trial
from optin_cli.evaluation.predictors.registry import run_trial
from optin_cli.evaluation.resampling import drop_error
from optin_cli.exporting.load import as_evaluated, device_for
from optin_cli.model.arithmetic import reproducible
from optin_cli.model.costs import count_totals
from optin_cli.options.common import MEASURED
from optin_cli.options.evaluation import EvalOptions
from optin_cli.profiling.timing import forward_latency
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.tasks.harness import is_harness_task, require_harness
from optin_cli.tasks.registry import load_task
from optin_cli.tasks.schema import UNLABELLED, Task
from optin_cli.version import __version__


def evaluate(
    checkpoint: Checkpoint | str | Path,
    task: str | None = None,
    data: DataSpec | str | Path | None = None,
    *,
    against: Checkpoint | str | Path | None = None,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Task metric, agreement with `against`, size and speed; without task and data, size and speed alone.

    Args:
        checkpoint, against: also files that `export` wrote, which run in their own runtimes.
        task: names the metrics; None for what the model is for. Without labels, agreement with `against` remains.
            "lm-eval:NAME" is a task of the lm-evaluation-harness.
        data: a file, folder or specification; None for the task's own dataset.

    Raises:
        DataError: the samples have no labels and there is nothing to compare with, or the task does not fit.
    """
    spec = DataSpec.of(data)
    external = None
    if is_harness_task(task):
        require_harness(task, spec.local)
        external, task = task, None
    elif task is not None:
        require_data(load_task(task), spec.local)
    device = device_for(None, checkpoint, against)
    opened = as_evaluated(checkpoint, device)
    other = None if against is None else replace(as_evaluated(against, device), processes=opened.processes)
    known = choose_task(opened, task, spec)
    for each in (opened, other):
        if known is not None and each is not None:
            require_fit(each, known)
    options = fitted(options or EvalOptions(), opened)
    require_decoding(opened, options.generation)
    samples = source = None
    if known is not None or spec.is_named:
        samples = opened.input.load_samples(spec.evaluating(options, known), progress)
        source = source_of(samples, spec)
        if task is None and not is_measurable(samples, known):
            known = None
    result = evaluate_samples(opened, Exam(samples, known, options, progress, source), other)
    if not opened.processes.leads:
        return result
    result = with_generation(result, opened, other, options, progress)
    if external is not None:
        result = with_harness(result, external, opened, other, options)
    for note in remarks(result, opened):
        progress.note(note)
    return result


def remarks(result: Evaluation, checkpoint: Checkpoint) -> list[str]:
    """What the user should know of an evaluation: texts that were cut off, and what makes a value suspicious."""
    said = [*result.notes]
    if result.truncated:
        length, most = result.options["max_length"], checkpoint.input.read_limit()
        larger = "a larger --max-length" if most is None else f"--max-length {most}, all that the model takes,"
        more = "" if most == length else f"; pass {larger} to measure by more of them"
        said.append(
            f"{result.truncated:,} of {result.samples:,} samples were truncated to {length} tokens, and their ends do "
            f"not count{more}."
        )
    return said


def fitted(options: EvalOptions, checkpoint: Checkpoint) -> EvalOptions:
    """The options with lengths that the model holds; `seq_len` is None for images."""
    usual = checkpoint.input.length(None)
    return replace(
        options,
        seq_len=checkpoint.input.length(options.seq_len),
        latency_length=min(options.latency_length, usual or options.latency_length),
    )


@dataclass(frozen=True)
class Exam:
    """What checkpoints are measured by.

    samples: None measures size and speed only. options: as `fitted` returns. source: of the samples, as artifacts
    record it; their name and hash where it is None. compared: whether models are compared by what they put out.
    """

    samples: AnySamples | None
    task: Task | None
    options: EvalOptions
    progress: Progress = SILENT
    source: Source | None = None
    compared: bool = True


def evaluate_samples(checkpoint: Checkpoint, exam: Exam, against: Checkpoint | None = None) -> Evaluation:
    """Predict the samples of an exam and measure the predictions (DataError as of `evaluate`).

    Processes that share the checkpoint share the predictions. The first alone compares, times and draws.
    """
    samples, task = exam.samples, exam.task
    if samples is not None and against is None and not is_measurable(samples, task):
        compare = "or --against CHECKPOINT to measure agreement."
        if samples.labelled or checkpoint.blueprint.purpose in UNLABELLED:
            raise DataError(
                f"There is no task that names a metric to measure {samples.name} by, and nothing to compare with.",
                hint=f"Pass a --task that fits the model, {compare}",
            )
        raise DataError(
            f"There are no labels to measure {samples.name} by, and nothing to compare with.",
            hint=f"Pass labelled data, its --label-column where that has a name of its own, {compare}",
        )
    if (folder := exam.options.pictures) is not None:
        require_drawable(checkpoint, samples)
    half, exam = 1.0 if against is None else 0.5, replace(exam, compared=against is not None)
    mine = predicted(checkpoint, replace(exam, progress=Part(exam.progress, 0.0, half)))
    other = None if against is None else predicted(against, replace(exam, progress=Part(exam.progress, half)))
    if not checkpoint.processes.leads:
        return measure(mine, None, replace(exam, options=replace(exam.options, latency_runs=0)))
    result = measure(mine, other, exam)
    if folder is None or samples is None:
        return result
    drawn = [(one.checkpoint, one.prediction) for one in (mine, other) if one is not None]
    pictures = write_pictures(drawn, samples, task, folder, exam.options.picture_count)
    return result.model_copy(update={"pictures": pictures})


@dataclass(frozen=True)
class Predicted:
    """A checkpoint and what it predicts in an exam, nothing where that has no samples."""

    checkpoint: Checkpoint
    prediction: Prediction


@reproducible()
def predicted(checkpoint: Checkpoint, exam: Exam) -> Predicted:
    """Predict the samples and, with a task and labels, measure the predictions, as the task's kind demands."""
    if exam.samples is None:
        return Predicted(checkpoint, Prediction([], []))
    options = exam.options
    while True:
        try:
            trial = Trial(checkpoint, exam.samples, exam.task, options, exam.progress, exam.compared)
            return Predicted(checkpoint, run_trial(trial))
        except torch.OutOfMemoryError:
            if options.batch_size == 1 or checkpoint.processes.count > 1:  # others wait for what this one has found
                raise
        torch.cuda.empty_cache()
        options = replace(options, batch_size=options.batch_size // 2)
        exam.progress.note(f"{checkpoint.device} has too little memory; going on with batches of {options.batch_size}.")


def measure(mine: Predicted, against: Predicted | None, exam: Exam) -> Evaluation:
    """Measure a checkpoint by its predictions, beside another of the same exam, timed in the same run, interleaved."""
    checkpoint, samples, task, prediction = mine.checkpoint, exam.samples, exam.task, mine.prediction
    workload = checkpoint.input.workload(exam.options.seq_len)
    inputs = checkpoint.sources
    if samples is not None:
        inputs["data"] = exam.source or Source(name=samples.name, sha256=samples.sha256)
    if against is not None:
        inputs["against"] = against.checkpoint.source
    latencies = _latencies([one.checkpoint for one in (mine, against) if one is not None], exam.options)
    values = prediction.values
    first = next(iter(values), None)
    totals = _totals(checkpoint, workload)
    return Evaluation(
        optin_version=__version__,
        options={
            "batch_size": exam.options.batch_size,
            "max_length": exam.options.max_length,  # what was used, where texts were read
            "latency_warmup": exam.options.latency_warmup,
            **checkpoint.computing,
            **prediction.constants,
        },
        inputs=inputs,
        task=task.name if task is not None else None,
        split=samples.split if samples is not None else "none",
        samples=len(samples) if samples is not None else 0,
        metric=Measure(name=first, value=values[first]) if first else None,
        metrics=values,
        standard_error=prediction.error,
        class_iou=prediction.class_iou,
        truncated=prediction.truncated,
        tokens=prediction.tokens,
        notes=(*prediction.notes, *(() if against is None else against.prediction.notes)),
        workload=workload,
        totals=totals,
        latency=latencies[0] if latencies else None,
        against=None if against is None else _compare(mine, against, exam, (totals, workload), latencies),
    )


def _totals(checkpoint: Checkpoint, workload: Workload) -> Totals:
    recorded = checkpoint.recorded
    if recorded is not None:
        if recorded.workload != workload:
            raise UsageError(
                f"The MACs of {checkpoint.name} are recorded for {recorded.workload.shape}, not for {workload.shape}.",
                hint="Leave out --seq-len, or export again with that --seq-len.",
            )
        return recorded.totals
    return count_totals(checkpoint.model, checkpoint.input.example(workload), checkpoint.weight_bytes)


def _latencies(checkpoints: Sequence[Checkpoint], options: EvalOptions) -> list[Latency]:
    if options.latency_runs == 0:
        return []
    workload = checkpoints[0].input.workload(options.latency_length, options.latency_batch)
    latencies = forward_latency(
        [c.model for c in checkpoints],
        random_inputs([c.input for c in checkpoints], workload),
        workload,
        runs=options.latency_runs,
        warmup=options.latency_warmup,
    )
    return [
        found if checkpoint.recorded is None else found.model_copy(update={"runtime": checkpoint.recorded.runtime})
        for found, checkpoint in zip(latencies, checkpoints, strict=True)
    ]


def _compare(
    mine: Predicted, theirs: Predicted, exam: Exam, cost: tuple[Totals, Workload], latencies: Sequence[Latency]
) -> Comparison:
    """Compare two models by the first metric. cost: what the first costs, and the input that this is stated for."""
    metric, samples = next(iter(mine.prediction.values), None), 0 if exam.samples is None else len(exam.samples)
    against, totals, other = theirs.checkpoint, cost[0], _totals(theirs.checkpoint, cost[1])
    value = drop = error = None
    same, kl = _distances(mine.prediction, theirs)
    if metric is not None:
        value = Measure(name=metric, value=theirs.prediction.values[metric])
        named, at, other_at = metrics.find_metric(metric), mine.prediction.at, theirs.prediction.at
        drop = named.drop(mine.prediction.values[metric], value.value)
        error = None if at is None or other_at is None else drop_error(at, other_at, samples, named)
    return Comparison(
        name=against.name,
        runtime="torch" if against.recorded is None else against.recorded.runtime,
        metric=value,
        metrics=theirs.prediction.values,
        class_iou=theirs.prediction.class_iou,
        drop=drop,
        drop_error=error,
        relative_drop=metric is not None and metrics.find_metric(metric).relative,
        agreement=same,
        kl=kl,
        macs_ratio=totals.macs / other.macs,
        parameters_ratio=totals.parameters / other.parameters,
        bytes_ratio=totals.bytes / other.bytes,
        latency_ratio=latencies[0].median_ms / latencies[1].median_ms if latencies else None,
    )


def _kinds(prediction: Prediction) -> list[str]:
    """Of what kinds the outputs are that can be compared."""
    return ["vocabulary"] if prediction.stream is not None else [output.kind for output in prediction.outputs]


def _distances(mine: Prediction, against: Predicted) -> tuple[float | None, float | None]:
    """Agreement and KL averaged over the outputs that are distributions; None where there are none, or maps only."""
    theirs = against.prediction
    kinds = [_kinds(one) for one in (mine, theirs)]
    if kinds[0] != kinds[1] or len(mine.maps) != len(theirs.maps):
        here, there = (", ".join(one) or "nothing that can be compared" for one in kinds)
        raise DataError(
            f"The two models put out different things: {here}, against {there}.",
            hint="Compare checkpoints of the same task.",
        )
    if (mine.outputs or mine.maps or mine.stream is not None) and mine.keys != theirs.keys:
        raise DataError(
            f"{against.checkpoint.name} tokenizes the samples differently, so outputs cannot be compared one by one.",
            hint="Compare checkpoints that share a tokenizer.",
        )
    if mine.stream is not None and theirs.stream is not None:
        return streamed_distances(mine.stream(), theirs.stream())
    if mine.maps:
        return agreement(mine.maps, theirs.maps), None
    pairs = zip(mine.outputs, theirs.outputs, strict=True)
    found = list(filter(None, (distances(a.values, b.values, a.kind) for a, b in pairs)))
    if not found:
        return None, None
    return sum(s for s, _ in found) / len(found), sum(k for _, k in found) / len(found)


def drop_of(evaluation: Evaluation) -> Drop:
    """The drop against the other model (UsageError if nothing was compared)."""
    comparison = evaluation.against
    if comparison is None or comparison.drop is None or comparison.metric is None or evaluation.metric is None:
        raise UsageError(
            "--max-drop needs a metric of both models, and one is missing.",
            hint="Pass --against CHECKPOINT and --task NAME with labelled data.",
        )
    return Drop(comparison.drop, comparison.drop_error, evaluation.samples, comparison.relative_drop)


def require_drop(evaluation: Evaluation, most: float, confidence: float = MEASURED) -> str | None:
    """The message if the metric is worse by more than `most`, or may be at that confidence; None if not.

    Raises UsageError: nothing was compared, or a confidence is asked for of a drop whose error is not known.
    """
    drop, gate, comparison = drop_of(evaluation), Gate(most, confidence), evaluation.against
    if drop.error is None and confidence > MEASURED:
        raise UsageError(
            f"--confidence needs the error of the drop, which is not known for {evaluation.task}.",
            hint="Leave out --confidence, so that the drop is judged as measured.",
        )
    if gate.passes(drop):
        return None
    assert comparison is not None and comparison.metric is not None and evaluation.metric is not None
    moved = "fell" if evaluation.metric.value <= comparison.metric.value else "rose"
    by = f"{drop.value:.1%}" if drop.relative else f"{drop.value:.4f}"
    moves = (
        f"{evaluation.metric.name} {moved} by {by} (from {comparison.metric.value:.4f} to "
        f"{evaluation.metric.value:.4f})"
    )
    if drop.value > most:
        return f"{moves}, more than the {gate.limit(drop)} allowed."
    return f"{moves}, which is within the {gate.limit(drop)} allowed, but not at a confidence of {confidence:g}."
