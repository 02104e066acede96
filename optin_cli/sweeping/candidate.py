"""What a recipe decided for a budget in; the cut and adjusted model, its measures and its certified folder out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from optin_cli.artifacts.base import Options, Source, Totals, Workload
from optin_cli.artifacts.costs import GroupCost
from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Budget, GroupMask, Kept, Mask
from optin_cli.artifacts.sweep import SweepPoint
from optin_cli.checkpoints.save import round_to_storage
from optin_cli.data.load import AnySamples
from optin_cli.errors import DataError
from optin_cli.evaluation.evaluate import evaluate_checkpoint
from optin_cli.evaluation.predict import Prediction
from optin_cli.files import sha256_of, write_text
from optin_cli.model.plan import Plan
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import Progress
from optin_cli.pruning.prune import cut_copy, prune_checkpoint
from optin_cli.recipes.recipe import Prepared, Setting
from optin_cli.search.costs import Costs
from optin_cli.search.limits import Limits
from optin_cli.tasks.schema import Task
from optin_cli.version import __version__


@dataclass(frozen=True)
class Candidate:
    """A recipe's model for a share of the MACs, in memory; what adjusting it did, and the seconds all took."""

    recipe: str
    share: float
    kept: Kept
    model: nn.Module
    plan: Plan
    refit: dict[str, Refit] | None
    seconds: float


def make_candidate(recipe: str, prepared: Prepared, setting: Setting, share: float) -> Candidate:
    """Decide, cut and adjust, with the weights rounded to what saving keeps."""
    begin = time.perf_counter()
    outcome = prepared(Limits(keep_macs=share))
    model, plan = cut_copy(setting.checkpoint, outcome.kept)
    refit = None if outcome.adjust is None else outcome.adjust(model)
    round_to_storage(model, setting.checkpoint.dtype)
    return Candidate(recipe, share, outcome.kept, model, plan, refit, time.perf_counter() - begin)


def measure_candidate(
    candidate: Candidate,
    setting: Setting,
    task: Task,
    samples: AnySamples,
    original: Prediction,
    options: EvalOptions,
    prepare_seconds: float,
    progress: Progress,
) -> SweepPoint:
    """Evaluate against the original.

    Args:
        original: what the original predicts for the samples.
        prepare_seconds: what the recipe took before its first budget.
    """
    checkpoint = setting.checkpoint
    name = f"{candidate.recipe} {candidate.share:g}"
    result = evaluate_checkpoint(
        replace(
            checkpoint,
            name=name,
            model=candidate.model,
            blueprint=replace(checkpoint.blueprint, plan=candidate.plan.model_dump()),
        ),
        samples,
        task=task,
        against=checkpoint,
        theirs=original,
        options=options,
        progress=progress,
    )
    other = result.against
    if result.metric is None or other is None or other.drop is None:
        raise DataError(f"{samples.name} has no labels to measure {task.metrics[0]} by.")
    return SweepPoint(
        recipe=candidate.recipe,
        asked=candidate.share,
        macs_ratio=other.macs_ratio,
        parameters_ratio=other.parameters_ratio,
        value=result.metric.value,
        metrics=result.metrics,
        standard_error=result.standard_error,
        drop=other.drop,
        agreement=other.agreement,
        latency=result.latency,
        latency_ratio=other.latency_ratio,
        prepare_seconds=prepare_seconds,
        prune_seconds=candidate.seconds,
    )


def candidate_mask(
    candidate: Candidate, setting: Setting, costs: Mapping[str, GroupCost], totals: Totals, workload: Workload
) -> Mask:
    """The mask that a candidate was cut by."""
    checkpoint = setting.checkpoint
    return Mask(
        optin_version=__version__,
        options={"recipe": candidate.recipe, **scoring_constants(setting.options), "refit_ridge": setting.ridge},
        inputs={"calibration": setting.calibration.source, **checkpoint.sources},
        workload=workload,
        budget=Budget(asked={"macs": candidate.share}, reached=Costs(costs, totals).remaining(candidate.kept)),
        importance_lost=None,
        groups={
            group.name: GroupMask(units=group.units, kept=candidate.kept[group.name])
            for group in checkpoint.structure.groups
        },
    )


def save_candidate(
    candidate: Candidate, setting: Setting, mask: Mask, folder: Path, mask_file: Path, progress: Progress
) -> None:
    """Write the certified model folder, with the candidate's very weights, and its mask; both replace older ones."""

    def restore(model: nn.Module) -> dict[str, Refit]:
        model.load_state_dict(candidate.model.state_dict())
        return candidate.refit or {}

    prune_checkpoint(
        setting.checkpoint,
        mask,
        Source(name=mask_file.name, sha256=sha256_of(mask.dump().encode())),
        folder,
        adjust=None if candidate.refit is None else restore,
        adjusted_with=None if candidate.refit is None else setting.calibration.source,
        force=True,
        progress=progress,
    )
    write_text(mask_file, mask.dump(), force=True)


def scoring_constants(options: ScoreOptions) -> Options:
    """Constants of scoring as artifacts record them, less the criterion, which is the recipe's own."""
    constants: Options = options.recorded()
    del constants["criterion"]
    return constants
