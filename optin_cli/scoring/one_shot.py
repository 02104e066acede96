"""Score every unit of a checkpoint once."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from optin_cli.artifacts.costs import HEAD_DIM
from optin_cli.artifacts.scores import GroupScores, Scores, ScoresHeader
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError
from optin_cli.model.costs import measure_costs
from optin_cli.model.head_dims import Products, head_dims_of
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group
from optin_cli.options.scoring import CRITERIA, UNITS, ScoreOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.scoring.accumulate import Accumulator, Job, RunIdentity, SavedState, require_finite, run_jobs
from optin_cli.scoring.baselines import fisher_batch, magnitude, random_importance, wanda_batch
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.exact import exact_batch
from optin_cli.scoring.kinds import KIND_ESTIMATORS
from optin_cli.scoring.moments import (
    Moments,
    empty_moments,
    energy_batch,
    is_solvable,
    removal_importance,
    sensitivity_batch,
    with_intercept,
)
from optin_cli.scoring.products import DimMoments, DimWatch, empty_dims
from optin_cli.scoring.sketch import Objective, sketch_batch
from optin_cli.version import __version__

MEASURED = {"fisher": fisher_batch, "wanda": wanda_batch}
"""Baselines that see data: per-sample importances of a batch, by criterion."""


CURVES = 0.2
"""About the share of a run that removal curves take, for progress."""


def estimator_of(group: Group, options: ScoreOptions, *, curved: bool = True) -> str:
    """Which estimator scores a group: the criterion's own name for a baseline. curved: it has a removal curve."""
    if CRITERIA[options.criterion].terms is None:
        return options.criterion
    if options.estimator == "hybrid":
        return "exact" if group.kind in options.removed_kinds else "sketch"
    return options.estimator if curved or options.estimator != "obs" else "sketch"


def curved_groups(checkpoint: Checkpoint, options: ScoreOptions) -> list[Group]:
    """Groups whose importance is read off removal curves: those whose consumers can be re-solved."""
    obs = CRITERIA[options.criterion].terms is not None and options.estimator == "obs"
    groups = checkpoint.structure.groups if obs or options.criterion == "slimgpt" else ()
    return [group for group in groups if group.units and is_solvable(checkpoint.model, group)]


def only_units(structure: Structure, options: ScoreOptions) -> Structure:
    """The structure with the groups that are to be scored.

    Raises:
        UsageError: units were asked for that the model lacks, or to score such exactly, or it has none of any.
    """
    dims = head_dims_of(structure.kinds)
    found = sorted({group.kind for group in structure.groups} | ({HEAD_DIM} if dims else set()))
    asked = {UNITS[name] for name in options.units if name not in KIND_ESTIMATORS}
    if options.units != ScoreOptions.units and (missing := sorted(asked - set(found))):
        raise UsageError(
            f"There are no units of kind {missing[0]!r}; the model's are {', '.join(found)}.",
            hint="Leave that out of --units.",
        )
    if not asked - {HEAD_DIM}:
        alone = ", ".join(options.units)
        raise UsageError(f"{alone.capitalize()} alone were asked for.", hint=f"Pass --units heads,neurons,{alone}.")
    chosen = structure.with_groups(group for group in structure.groups if group.kind in asked)
    if HEAD_DIM not in asked:
        chosen = replace(chosen, kinds=tuple(kind for kind in chosen.kinds if kind is not dims))
    check_exact_kinds(chosen, options)
    return chosen


def check_exact_kinds(structure: Structure, options: ScoreOptions) -> None:
    """Refuse kinds that were named to be scored exactly and are not there; the default is passed over instead."""
    if options.estimator != "hybrid" or options.exact_kinds is None:
        return
    found = sorted({group.kind for group in structure.groups})
    if missing := sorted(set(options.removed_kinds) - set(found)):
        raise UsageError(
            f"There are no units of kind {missing[0]!r} to score exactly; what is scored is {', '.join(found)}.",
            hint="Leave that out of --exact-kinds.",
        )


def scored_products(structure: Structure, curved: Sequence[Group], options: ScoreOptions) -> tuple[Products, ...]:
    """Query and key layers whose dimensions are scored, which are those of heads with removal curves by trajectory.

    Raises:
        UsageError: dimensions were asked for, but cannot be compared with other units.
    """
    kind, names = head_dims_of(structure.kinds), {group.name for group in curved}
    chosen = tuple(one for one in kind.products if one.heads in names) if kind is not None else ()
    if CRITERIA[options.criterion].terms is None:
        chosen = ()
    if not chosen and options.units != ScoreOptions.units and "head-dims" in options.units:
        raise UsageError(
            "Head dimensions are scored beside their heads, by the estimator obs of a trajectory criterion.",
            hint="Pass --units heads,neurons,head-dims with --criterion trajectory, or leave out head-dims.",
        )
    return chosen


@dataclass(frozen=True)
class Planned:
    """A run before anything is computed.

    estimators: of every scored group, by name. curved: groups whose importance is read off removal curves. moments,
    dims: what the jobs add to, by path of the consumer and by name of the group.
    """

    identity: RunIdentity
    jobs: Sequence[Job]
    estimators: Mapping[str, str]
    curved: Sequence[Group]
    moments: Mapping[str, Moments]
    dims: Mapping[str, DimMoments]

    @property
    def extra(self) -> dict[str, torch.Tensor]:
        """The tensors that jobs add to in place, by name."""
        summed = [(path, found.tensors()) for part in (self.moments, self.dims) for path, found in part.items()]
        return {f"{name}.{path}": tensor for path, tensors in summed for name, tensor in tensors.items()}


def plan_run(
    checkpoint: Checkpoint, calibration: Calibration | None, options: ScoreOptions, seq_len: int | None
) -> Planned:
    """What `score_checkpoint` is to do; arguments as there."""
    curved = curved_groups(checkpoint, options)
    estimators = {
        group.name: estimator_of(group, options, curved=group in curved) for group in checkpoint.structure.groups
    }
    moments = empty_moments(checkpoint.model, curved)
    dims = empty_dims(checkpoint.model, scored_products(checkpoint.structure, curved, options))
    jobs = [] if calibration is None else _jobs(checkpoint, calibration, options, estimators, (moments, dims))
    identity = _identity(checkpoint, calibration, options, seq_len)
    return Planned(identity, jobs, estimators | dict.fromkeys(dims, "obs"), curved, moments, dims)


def _identity(
    checkpoint: Checkpoint, calibration: Calibration | None, options: ScoreOptions, seq_len: int | None
) -> RunIdentity:
    inputs = checkpoint.sources
    if calibration is not None:
        inputs["calibration"] = calibration.source
    workload = checkpoint.input.workload(seq_len)
    batches = () if calibration is None else (*calibration.batches, *calibration.exact_batches)
    recorded = {**options.recorded(), **checkpoint.computing}
    return RunIdentity("units", checkpoint.structure, recorded, inputs, workload, batches)


def score_checkpoint(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    options: ScoreOptions,
    *,
    seq_len: int | None,
    state: SavedState = SavedState(),
    progress: Progress = SILENT,
) -> Scores:
    """Score every unit.

    Args:
        calibration: None only for criteria that need no data.
        seq_len: sequence length that the recorded costs are stated for; images have a size of their own.
        state: the caller removes its file once the result is safe.

    Raises:
        NotFiniteError: a score is not finite. ArtifactError: `resume` of a state that another run left.
    """
    run = plan_run(checkpoint, calibration, options, seq_len)
    curved, moments, dims = run.curved, run.moments, run.dims
    summing = Part(progress, 0, 1 - CURVES) if curved else progress
    totals = run_jobs(run.jobs, run.identity, state, summing, run.extra, checkpoint.processes)
    importance = {g.name: _importance(checkpoint, g, totals, options) for g in checkpoint.structure.groups}
    require_finite({**importance, **{path: found.diagonals() for path, found in moments.items()}})
    if calibration is not None and curved:
        batch = calibration.batches[0].to(checkpoint.device)
        # Without gradients a loss is an error of the layer's output, which no unit's sensitivity is.
        squared = {group: None if options.criterion == "slimgpt" else importance[group.name] for group in curved}
        importance |= _by_curves(checkpoint, squared, moments, batch, options.damping, Part(progress, 1 - CURVES, 1))
        importance |= {name: found.importance(totals.mean(name)) for name, found in dims.items()}
    require_finite({name: importance[name] for name in dims})
    return assemble_scores(checkpoint, run.identity, run.estimators, importance, totals)


def would_give(
    scores: Scores,
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    options: ScoreOptions,
    *,
    seq_len: int | None,
) -> bool:
    """Whether `score_checkpoint` would give these scores, as far as their header tells; arguments as there."""
    run, header = _identity(checkpoint, calibration, options, seq_len), scores.header
    mine, theirs = (
        {role: source.published for role, source in inputs.items()} for inputs in (run.inputs, header.inputs)
    )
    found = header.optin_version, header.options, theirs, header.workload
    return found == (__version__, run.options, mine, run.workload)


def assemble_scores(
    checkpoint: Checkpoint,
    identity: RunIdentity,
    estimators: Mapping[str, str],
    importance: Mapping[str, torch.Tensor],
    totals: Accumulator,
) -> Scores:
    """Scores with the record of how they were made and what units cost. estimators: by name of every scored group."""
    inputs_at = checkpoint.input.example(identity.workload)
    cost, group_costs = measure_costs(checkpoint.model, checkpoint.structure, inputs_at, checkpoint.weight_bytes)
    header = ScoresHeader(
        optin_version=__version__,
        options=identity.options,
        inputs=dict(identity.inputs),
        family=checkpoint.structure.family,
        architecture=checkpoint.blueprint.model_class,
        criterion=str(identity.options["criterion"]),
        workload=identity.workload,
        totals=cost,
        groups={
            name: GroupScores(**group_costs[name].model_dump(), estimator=estimator, samples=totals.counts.get(name, 0))
            for name, estimator in estimators.items()
        },
    )
    errors = {name: totals.standard_error(name).float().numpy() for name in estimators if name in totals.sums}
    return Scores(header, {name: importance[name].float().cpu().numpy() for name in estimators}, errors)


def _importance(checkpoint: Checkpoint, group: Group, totals: Accumulator, options: ScoreOptions) -> torch.Tensor:
    if options.criterion == "magnitude":
        return magnitude(checkpoint.model, group)
    if options.criterion == "random":
        return random_importance(group, options.seed)
    return totals.mean(group.name)


def _by_curves(
    checkpoint: Checkpoint,
    groups: Mapping[Group, torch.Tensor | None],
    moments: Mapping[str, Moments],
    batch: Batch,
    damping: float,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Importances (units,) by group name, from removal curves. groups: with `squared` of `removal_importance`."""
    centred = with_intercept(checkpoint.model, checkpoint.structure.with_groups(groups), batch)
    names = {group: number for number, group in enumerate(groups)}

    def importance(group: Group) -> torch.Tensor:
        progress.update(names[group], len(groups), f"order of {group.name}")
        own, solved = moments[group.consumer], group.consumer in centred
        return removal_importance(
            checkpoint.model, group, own, centred=solved, damping=damping, squared=groups[group]
        ).cpu()

    work = [float(len(moments[group.consumer].square)) ** 3 for group in groups]
    found = checkpoint.processes.map(importance, [*groups], work)
    progress.update(1, 1, "importances along those orders")
    return {group.name: each for group, each in zip(groups, found, strict=True)}


def _jobs(
    checkpoint: Checkpoint,
    calibration: Calibration,
    options: ScoreOptions,
    estimators: Mapping[str, str],
    summed: tuple[Mapping[str, Moments], Mapping[str, DimMoments]],
) -> list[Job]:
    """Jobs of a run. summed: what they add to in place, by path of the consumer and by group name."""
    moments, dims = summed
    model, structure = checkpoint.model, checkpoint.structure
    criterion = CRITERIA[options.criterion]
    if not criterion.needs_data:
        return []
    if options.criterion == "slimgpt":
        return [
            Job(options.criterion, batch.work, functools.partial(energy_batch, model, structure, moments, batch))
            for batch in _on(calibration.batches, checkpoint)
        ]
    if criterion.terms is None:
        measure = MEASURED[options.criterion]
        return [
            Job(options.criterion, batch.work, functools.partial(measure, model, structure, structure.groups, batch))
            for batch in _on(calibration.batches, checkpoint)
        ]
    objective = Objective.of(options)
    how = {"probes": options.probes, "seed": options.seed}
    if moments:
        return [
            Job(
                "obs",
                batch.work * (1 + 1.5 * options.probes),
                functools.partial(
                    sensitivity_batch, model, structure, moments, batch, objective, **how, dims=DimWatch(dims)
                ),
            )
            for batch in _on(calibration.batches, checkpoint)
        ]
    sketched, exact = (
        structure.with_groups(g for g in structure.groups if estimators[g.name] == name) for name in ("sketch", "exact")
    )
    jobs: list[Job] = []
    if sketched.groups:
        jobs += [
            Job(
                "sketch",
                batch.work * (1 + 1.5 * options.probes),
                functools.partial(sketch_batch, model, sketched, batch, objective, **how),
            )
            for batch in _on(calibration.batches, checkpoint)
        ]
    jobs += [
        Job(
            f"exact {group.name}",
            batch.work * group.units * 0.5,
            functools.partial(
                exact_batch,
                model,
                structure.with_groups([group]),
                batch,
                objective,
                rows=checkpoint.input.rows_at_once(options.rows, next(iter(batch.inputs.values())).shape[-1]),
            ),
        )
        for group in exact.groups
        for batch in _on(calibration.exact_batches, checkpoint)
    ]
    return jobs


def _on(batches: Sequence[Batch], checkpoint: Checkpoint) -> list[Batch]:
    return [batch.to(checkpoint.device) for batch in batches]
