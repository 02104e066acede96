"""A recipe's pruned and adjusted model for one budget: made in memory, measured, and written as a folder."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from optin_cli.artifacts.base import Options, Source, Workload
from optin_cli.artifacts.manifest import Refit
from optin_cli.artifacts.mask import Budget, GroupMask, Kept, Mask
from optin_cli.artifacts.sweep import SweepPoint
from optin_cli.checkpoints.save import round_to_storage
from optin_cli.errors import DataError
from optin_cli.evaluation.evaluate import Exam, Predicted, measure, predicted
from optin_cli.files import sha256_of, write_text
from optin_cli.model.arithmetic import reproducible
from optin_cli.model.cut import PrunedModel
from optin_cli.model.plan import Plan
from optin_cli.options.scoring import ScoreOptions
from optin_cli.progress import Progress
from optin_cli.pruning.planning import plan_pruning
from optin_cli.pruning.prune import Adjustment, cut_copy, write_pruned
from optin_cli.recipes.recipe import Prepared, Setting
from optin_cli.searching.limits import Limits
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


@reproducible()
def make_candidate(recipe: str, prepared: Prepared, setting: Setting, share: float) -> Candidate:
    """Decide, cut and adjust, with the weights rounded to what saving keeps."""
    begin = time.perf_counter()
    outcome = prepared(Limits(keep_macs=share))
    model, plan = cut_copy(setting.checkpoint, outcome.kept)
    refit = None if outcome.adjust is None else outcome.adjust(model)
    round_to_storage(model, setting.checkpoint)
    return Candidate(recipe, share, outcome.kept, model, plan, refit, time.perf_counter() - begin)


def measure_candidate(
    candidate: Candidate, setting: Setting, exam: Exam, original: Predicted, prepare_seconds: float
) -> SweepPoint:
    """Evaluate against the original. prepare_seconds: what the recipe took before its first budget."""
    checkpoint = replace(
        setting.checkpoint,
        name=f"{candidate.recipe} {candidate.share:g}",
        model=candidate.model,
        blueprint=replace(setting.checkpoint.blueprint, plan=candidate.plan.model_dump()),
    )
    result = measure(predicted(checkpoint, exam), original, exam)
    other = result.against
    if result.metric is None or other is None or other.drop is None:
        raise DataError(f"{result.inputs['data'].name} has no labels to measure {checkpoint.name} by.")
    return SweepPoint(
        recipe=candidate.recipe,
        asked=candidate.share,
        macs_ratio=other.macs_ratio,
        parameters_ratio=other.parameters_ratio,
        value=result.metric.value,
        metrics=result.metrics,
        standard_error=result.standard_error,
        drop=other.drop,
        drop_error=other.drop_error,
        agreement=other.agreement,
        latency=result.latency,
        latency_ratio=other.latency_ratio,
        prepare_seconds=prepare_seconds,
        prune_seconds=candidate.seconds,
    )


def candidate_mask(candidate: Candidate, setting: Setting, workload: Workload, scores: Source | None) -> Mask:
    """The mask that a candidate was cut by. scores: those that it follows from, if any."""
    checkpoint = setting.checkpoint
    scored = {} if scores is None else {"scores": scores}
    return Mask(
        optin_version=__version__,
        options={"recipe": candidate.recipe, **scoring_constants(setting.options), "refit_ridge": setting.ridge},
        inputs={**scored, "calibration": setting.calibration.source, **checkpoint.sources},
        workload=workload,
        budget=Budget(asked={"macs": candidate.share}, reached=setting.costs.remaining(candidate.kept)),
        importance_lost=None,
        groups={
            name: GroupMask(units=units, kept=candidate.kept[name])
            for name, units in checkpoint.structure.units.items()
            if name in candidate.kept
        },
    )


def save_candidate(
    candidate: Candidate, setting: Setting, mask: Mask, folder: Path, mask_file: Path, progress: Progress
) -> None:
    """Write the certified model folder, with the candidate's very weights, and its mask; both replace older ones."""

    def restore(pruned: PrunedModel) -> dict[str, Refit]:
        pruned.model.load_state_dict(candidate.model.state_dict())
        return candidate.refit or {}

    source = Source(name=mask_file.name, sha256=sha256_of(mask.dump().encode()))
    adjustment = None if candidate.refit is None else Adjustment(restore, setting.calibration.source)
    write_pruned(plan_pruning(setting.checkpoint, mask, source), folder, adjustment, force=True, progress=progress)
    write_text(mask_file, mask.dump(), force=True)


def scoring_constants(options: ScoreOptions) -> Options:
    """Constants of scoring as artifacts record them, less the criterion, which is the recipe's own."""
    return {name: value for name, value in options.recorded().items() if name != "criterion"}
