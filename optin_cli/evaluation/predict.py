"""Run a checkpoint over samples: what the predictor of every kind of task builds on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.nn.functional as F

from optin_cli.architectures.schema import OutputKind
from optin_cli.artifacts.base import Options
from optin_cli.checkpoints.batching import BatchOptions
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.load import AnySamples, require_texts
from optin_cli.errors import DataError
from optin_cli.evaluation.class_maps import ClassMap
from optin_cli.evaluation.resampling import MetricAt
from optin_cli.model.forward import call_model, final_outputs, per_token
from optin_cli.options.evaluation import EvalOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.schema import Task

Found = TypeVar("Found")


@dataclass(frozen=True)
class Trial:
    """One checkpoint to be tried on one set of samples; without a task, only its outputs are of interest.

    compared: whether its outputs are to be compared with another model's.
    """

    checkpoint: Checkpoint
    samples: AnySamples
    task: Task | None
    options: EvalOptions
    progress: Progress = SILENT
    compared: bool = True


@dataclass(frozen=True)
class Output:
    """One output of a model for N samples, (N, classes), and of what kind it is."""

    kind: OutputKind
    values: torch.Tensor


@dataclass(frozen=True)
class Prediction:
    """What a model makes of samples, and what that is worth.

    outputs: those of the model that can be compared with another model's.
    keys: the keys of the N samples, in order. values: the task's metrics in its order, empty without labels;
    error: standard error of the first. constants: what this kind of task was evaluated with. maps: the segmented
    images, in the samples' order, in place of outputs. class_iou: of each class by name, None where it is nowhere.
    truncated: samples whose ends the model did not see. notes: what is suspicious about the values. stream: computes
    logits (n, classes) anew, batch by batch, in place of outputs that would not fit in memory. tokens: of running text
    that were predicted. at: the first metric over some of the samples, by their numbers; None without labels.
    """

    outputs: list[Output]
    keys: list[str]
    values: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    constants: Options = field(default_factory=dict)
    maps: list[ClassMap] = field(default_factory=list)
    class_iou: dict[str, float | None] = field(default_factory=dict)
    truncated: int = 0
    notes: tuple[str, ...] = ()
    stream: Callable[[], Iterator[torch.Tensor]] | None = None
    tokens: int | None = None
    at: MetricAt | None = None


@dataclass(frozen=True)
class Outcome:
    """What a model put out for batches, and what is known of them.

    outputs: one (N, classes) tensor per output on the CPU; N counts samples, or real tokens for per-token outputs.
    Distributions over tokens are padded to the longest sample with the lowest finite number.
    keys: one for each sample, in order; of outputs that belong to whole samples, in the samples' own order, its number.
    labels: for each sample on the CPU, or None. truncated: samples whose ends were
    cut off. rows: of a batch, which samples it has.
    """

    outputs: list[torch.Tensor]
    keys: list[str]
    labels: torch.Tensor | None
    truncated: int = 0
    rows: Sequence[int] = ()


@torch.inference_mode()
def over_batches(
    checkpoint: Checkpoint, batches: Sequence[Batch], find: Callable[[Batch], Found], progress: Progress = SILENT
) -> list[Found]:
    """What a function finds in each batch, on the CPU, in order. Processes that share the checkpoint take turns."""
    processes, found = checkpoint.processes, []
    mine = batches if processes.count == 1 else batches[processes.rank :: processes.count]
    for number, batch in enumerate(mine):
        progress.update(number, len(mine), checkpoint.name)
        found.append(find(batch))
        progress.count(batch.size)
    return processes.gather(found)


def run_model(checkpoint: Checkpoint, batches: Sequence[Batch], progress: Progress = SILENT) -> Outcome:
    """Go through the batches once."""
    rules = checkpoint.structure.outputs

    def run(batch: Batch) -> Outcome:
        outputs = final_outputs(call_model(checkpoint.model, batch.inputs), rules, batch)
        flat = [
            output[batch.mask_for(output)] if per_token(output, rule) else output
            for output, rule in zip(outputs, rules, strict=True)
        ]
        labels = None if batch.labels is None else batch.labels.cpu()
        return Outcome([rows.float().cpu() for rows in flat], [*batch.keys], labels, batch.truncated, batch.rows)

    found = over_batches(checkpoint, batches, run, progress)
    keys = [key for each in found for key in each.keys]
    order = [row for each in found for row in each.rows]
    labels = [each.labels for each in found if each.labels is not None]
    by_sample = all(
        rule.over == "classes" and len(rows) == len(each.keys)
        for each in found
        for rows, rule in zip(each.outputs, rules, strict=True)
    )
    merged = []
    for rows in zip(*(each.outputs for each in found), strict=True):
        widest = max(r.shape[-1] for r in rows)
        lowest = torch.finfo(torch.float32).min / 4
        padded = [F.pad(r, (0, widest - r.shape[-1]), value=lowest) for r in rows]
        merged.append(torch.cat(padded).clamp(min=lowest))
    whole = Outcome(merged, keys, torch.cat(labels) if labels else None, sum(each.truncated for each in found))
    return _in_order(whole, order) if by_sample and sorted(order) == list(range(len(keys))) else whole


def _in_order(outcome: Outcome, rows: Sequence[int]) -> Outcome:
    """One output a sample, in the samples' order, in which models whose tokenizers differ can be compared."""
    places = torch.tensor(rows).argsort()
    labels = None if outcome.labels is None else outcome.labels[places]
    return replace(
        outcome,
        outputs=[output[places] for output in outcome.outputs],
        keys=[f"sample {number}" for number in range(len(rows))],
        labels=labels,
    )


def encoded(trial: Trial, *, labelled: bool, prompt: tuple[str, ...] = ()) -> Sequence[Batch]:
    """The samples as batches, each one sequence or image. prompt: as of `BatchOptions`."""
    how = BatchOptions(trial.options.batch_size, trial.options.max_length, trial.task, labelled, prompt)
    return trial.checkpoint.input.batches(trial.samples, how)


def read_options(trial: Trial) -> Options:
    """What an evaluation records of how samples were read, with the most tokens of a text."""
    return {**trial.samples.constants, "max_length": trial.checkpoint.input.read_length(trial.options.max_length)}


def require_finite(logits: torch.Tensor, output: str) -> None:
    """Refuse logits that are not finite (DataError). output: its name."""
    if not bool(logits.isfinite().all()):
        raise DataError(
            f"The model put out NaN or infinity in {output}.", hint="Check its weights, or run it in float32."
        )


def distributions(trial: Trial, outcome: Outcome) -> list[Output]:
    """Those of the model's outputs that are distributions over classes or tokens, or values that it predicts."""
    wanted = {"categorical", "bernoulli"} | ({"real"} if trial.checkpoint.blueprint.purpose == "regression" else set())
    rules = trial.checkpoint.structure.outputs
    return [
        Output(rule.kind, output)
        for output, rule in zip(outcome.outputs, rules, strict=True)
        if rule.kind in wanted and rule.over != "entries"
    ]


def require_pairs(trial: Trial, task: Task) -> None:
    """Refuse samples that do not hold two texts each."""
    if len(require_texts(trial.samples).texts[0]) != 2:
        raise DataError(
            f"The task {task.name} takes two texts a sample, {' and '.join(task.text_columns)}, but those of "
            f"{trial.samples.name} have one.",
            hint="Name both columns with --text-columns A,B.",
        )
