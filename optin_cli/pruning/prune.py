"""Prune a checkpoint by a mask: a physically smaller checkpoint folder, certified by a reload in a fresh process."""

import contextlib
import copy
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from optin_cli.artifacts.base import Options, Source, Totals
from optin_cli.artifacts.costs import TOKEN, GroupCost
from optin_cli.artifacts.manifest import Certificate, Manifest, Refit
from optin_cli.artifacts.mask import Kept, Mask
from optin_cli.checkpoints.batching import PROBE_ROWS, BatchOptions, device_of
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.decilm import Sizes, to_decilm
from optin_cli.checkpoints.embeddings import NAME
from optin_cli.checkpoints.folders import CARD, MANIFEST, weight_files, weight_hashes
from optin_cli.checkpoints.fresh import Reload, reloading
from optin_cli.checkpoints.generation import judge_generation, plan_generation
from optin_cli.checkpoints.save import round_to_storage, save_cut
from optin_cli.checkpoints.sentences import PACKAGE, is_installed
from optin_cli.checkpoints.verify import largest_difference, require_equal, run_probe, tolerance_for
from optin_cli.checkpoints.weights import State
from optin_cli.data.batch import Batch
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.files import atomic_folder, check_apart, sha256_of
from optin_cli.model.arithmetic import reproducible
from optin_cli.model.costs import measure_costs
from optin_cli.model.cut import PrunedModel, added_biases, cut
from optin_cli.model.decisions import noting_decisions, repeating_decisions
from optin_cli.model.depth import Shortening
from optin_cli.model.masking import masked
from optin_cli.model.plan import Plan
from optin_cli.model.structure import alike_rows
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import tokens_of
from optin_cli.options.refit import RefitOptions
from optin_cli.progress import SILENT, Part, Progress
from optin_cli.pruning.calibration import RecordedData
from optin_cli.pruning.config import DECI
from optin_cli.pruning.model_card import write_card
from optin_cli.pruning.parts import Parts, cut_parts
from optin_cli.pruning.planning import Pruning, plan_pruning
from optin_cli.refit.refit import refit_model
from optin_cli.refit.waypoint import Waypoint
from optin_cli.searching.costs import Costs
from optin_cli.version import __version__

REFITTED, SAVED = 0.8, 0.9
"""About the share of the work that is done once the model is refitted, and once it is saved, for progress."""


@dataclass(frozen=True)
class Adjustment:
    """How the weights of a pruned model are adjusted before it is saved, and what the manifest says of it.

    apply: changes the weights of the pruned model in place and returns what it did to each consumer. data: name and
    hash of the samples that it uses. options: its constants. waypoint: where it goes on if the model is streamed.
    """

    apply: Callable[[PrunedModel], dict[str, Refit]]
    data: Source
    options: Options = field(default_factory=dict)
    waypoint: Waypoint | None = None


@dataclass(frozen=True)
class Pruned:
    """A pruned model, its plan, and the difference of its outputs from those of the masked original.

    parts: what holds its blocks, where not all are in memory.
    """

    model: nn.Module
    plan: Plan
    difference: float
    tolerance: float
    parts: Parts | None

    def beside(self, original: Checkpoint, kept: Kept) -> PrunedModel:
        """The model beside its original, as a refit takes them."""
        known = () if self.parts is None else (self.parts.arrive, self.parts.restore)
        return PrunedModel(original.model, self.model, original.structure, kept, *known)


def prune(
    checkpoint: Checkpoint | str | Path,
    mask: Mask,
    output: str | Path,
    *,
    refit: DataSpec | RecordedData | str | Path | None = None,
    options: RefitOptions | None = None,
    force: bool = False,
    name: str = "mask",
    reload: Reload | None = None,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Prune a checkpoint by a mask into the folder `output`, certified by a reload in a fresh process.

    Args:
        output: appears only when everything succeeded.
        refit: unlabelled texts or images to refit the consumers on; `RecordedData` for those that the mask was scored
            on; None keeps the remaining weights as they are.
        options: how to refit.
        name: what messages and the manifest call the mask.
        reload: from `reloading`, in a process that the caller started; None starts one.
        state: folder in which the refit of a streamed model leaves the blocks that are finished, if it is interrupted;
            `resume` goes on from there. It is gone when all succeeded.

    Raises:
        ArtifactError: the mask does not belong to the checkpoint, or has a uniform layout that the library's own
            class cannot express.
        CertificateError: the reloaded folder computes something else; nothing is written.
        UsageError, DataError: of `RecordedData.find`.
    """
    source = Source(name=name, sha256=sha256_of(mask.dump().encode()))
    planned = plan_pruning(as_checkpoint(checkpoint), mask, source)
    found = refit.find(planned.checkpoint, mask, name, progress) if isinstance(refit, RecordedData) else refit
    spec, adjustment = DataSpec.of(found), None
    if spec.is_named:
        kept = None if planned.checkpoint.streaming is None else state
        adjustment = _refit_on(planned, spec, options or RefitOptions(), (kept, resume), progress)
    manifest = write_pruned(planned, Path(output), adjustment, force=force, reload=reload, progress=progress)
    if adjustment is not None and adjustment.waypoint is not None:
        adjustment.waypoint.forget()
    return manifest


def _refit_on(
    planned: Pruning, spec: DataSpec, options: RefitOptions, state: tuple[Path | None, bool], progress: Progress
) -> Adjustment:
    """Read the samples of a refit, and return the refit on them. state: as of `prune`, with `resume`."""
    if planned.settings is not None and options.add_bias:
        raise UsageError(
            "--add-bias gives layers a bias that the stock class has no place for, but the mask's layout is uniform.",
            hint="Leave out --add-bias.",
        )
    original = planned.checkpoint
    wanted = spec.calibrating(options.samples, options.seed, length=options.max_length or planned.mask.workload.seq_len)
    samples = original.input.load_samples(wanted, progress)
    batches = [*original.input.batches(samples, BatchOptions(options.batch_size, options.max_length))]
    data, waypoint = Source(name=samples.name, sha256=samples.sha256), None
    if state[0] is not None:
        identity = fingerprint(planned, data, options, batches)
        waypoint = Waypoint.begin(state[0], identity, resume=state[1])

    def apply(pruned: PrunedModel) -> dict[str, Refit]:
        on = device_of(pruned.model)  # that of a streamed model is known once it is open
        here, part = [batch.to(on) for batch in batches], Part(progress, 0, REFITTED)
        how: dict[str, Any] = {"processes": original.processes, "waypoint": waypoint, "progress": part}
        return refit_model(pruned, here, options, **how)

    recorded: Options = {f"refit_{key}": value for key, value in asdict(options).items()}
    return Adjustment(apply, data, recorded, waypoint)


def fingerprint(planned: Pruning, data: Source, options: RefitOptions, batches: Sequence[Batch]) -> str:
    """Hash of everything that a refit depends on."""
    inputs = {**planned.checkpoint.sources, "mask": planned.source, "calibration": data}
    parts = {
        "version": __version__,
        "inputs": {role: source.sha256 for role, source in inputs.items()},
        "options": {**asdict(options), **planned.checkpoint.computing},
        "structure": repr(planned.checkpoint.structure),
        "batches": [batch.fingerprint() for batch in batches],
    }
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


@reproducible()
def write_pruned(
    planned: Pruning,
    output: Path,
    adjustment: Adjustment | None,
    *,
    force: bool = False,
    reload: Reload | None = None,
    progress: Progress = SILENT,
) -> Manifest:
    """Prune, adjust, save and certify into a folder that appears only if all succeeds (else CertificateError).

    Of processes that share the adjustment, the first one does the rest.
    """
    original = planned.checkpoint
    if not original.processes.leads:
        with tempfile.TemporaryDirectory() as scratch, cut_and_compare(planned, Path(scratch)) as pruned:
            if adjustment is not None:
                adjustment.apply(pruned.beside(original, planned.mask.kept))
        return original.processes.share(None)
    modules = [original.blueprint.library, type(original.model).__module__]
    modules += [] if original.blueprint.sentences is None else [PACKAGE]
    check_apart(output, [original.blueprint.folder])
    starting = reloading(modules) if reload is None else contextlib.nullcontext(reload)
    with atomic_folder(output, force=force) as folder, starting as certifying:
        progress.update(0, 1, "cutting")
        costs = measure_original(original, planned.mask)
        waypoint = None if adjustment is None else adjustment.waypoint
        with cut_and_compare(planned, folder, waypoint) as pruned:
            refit = None if adjustment is None else adjustment.apply(pruned.beside(original, planned.mask.kept))
            plan = pruned.plan.then(added_biases(original.model, pruned.model, original.structure))
            left, plan = without_bypassed(planned, pruned.model, plan)
            progress.update(REFITTED, 1, "saving")
            state = settled(pruned, left, progress)
            save_cut(left, pruned.model, plan, folder, settings=planned.settings, state=state)
            if planned.mask.options.get("layout") == DECI:
                shapes = {name: tuple(tensor.shape) for name, tensor in pruned.model.state_dict().items()}
                to_decilm(folder, Sizes(shapes, left.blueprint.config))
            progress.update(SAVED, 1, "checking in a fresh process")
            certificate = _certify(planned, pruned, folder, certifying)
        after = planned.cost(pruned.model, sum(path.stat().st_size for path in weight_files(folder)))
        manifest = _manifest(planned, (costs, after), adjustment, refit, certificate)
        manifest = manifest.model_copy(update={"weights": weight_hashes(folder)})
        (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
        licences = sorted(path.name for path in folder.glob("LICENSE*"))
        (folder / CARD).write_text(write_card(manifest, original.blueprint, licences), encoding="utf-8")
    return original.processes.share(manifest)


def measure_original(checkpoint: Checkpoint, mask: Mask) -> Costs:
    """Costs of the original, and of the units of the groups that a mask names, at the mask's workload."""
    model, structure, inputs = checkpoint.model, checkpoint.structure, checkpoint.input.example(mask.workload)
    totals, groups = measure_costs(model, structure, inputs, checkpoint.weight_bytes)
    groups = {name: cost for name, cost in groups.items() if name in mask.groups}
    tokens = tokens_of(structure)
    if tokens is None or not tokens.units.keys() & mask.groups.keys():
        return Costs(groups, totals)
    # Only the number of merging tokens is asked of these groups; what they save follows from the costs of blocks.
    nothing = {"unit_macs": 0.0, "unit_parameters": 0}
    groups |= {
        name: GroupCost(kind=TOKEN, block=block, units=tokens.mergeable, **nothing)
        for name, block in tokens.block_of.items()
    }
    return Costs(groups, totals, measure_token_costs(model, structure, tokens, inputs))


def cut_copy(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> tuple[nn.Module, Plan]:
    """A pruned copy of the checkpoint's model, and the plan that gives the library's own model its shapes."""
    model = copy.deepcopy(checkpoint.model)
    return model, _after_earlier(checkpoint, cut(model, checkpoint.structure, kept))


def _after_earlier(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan of pruning as the checkpoint was already, and then by `plan`."""
    earlier = checkpoint.blueprint.plan
    return Plan.model_validate(earlier).then(plan) if earlier else plan


@contextlib.contextmanager
def cut_and_compare(planned: Pruning, folder: Path, waypoint: Waypoint | None = None) -> Iterator[Pruned]:
    """A pruned copy of the model, compared with the masked original (CertificateError if outputs differ).

    Args:
        folder: for the blocks of a streamed model meanwhile. waypoint: keeps them if the run is interrupted.
    """
    checkpoint, kept = planned.checkpoint, planned.mask.kept
    if checkpoint.streaming is None:
        model, plan = cut_copy(checkpoint, kept)
        yield Pruned(model, plan, *compare_masked(planned, model), None)
        return
    place = folder if waypoint is None else waypoint.blocks
    with cut_parts(checkpoint, checkpoint.streaming, kept, place, lasting=waypoint is not None) as (parts, own):
        plan = _after_earlier(checkpoint, own)
        yield Pruned(parts.model, plan, *compare_masked(planned, parts.model), parts)


def compare_masked(planned: Pruning, model: nn.Module) -> tuple[float, float]:
    """The difference of a pruned model's outputs from the masked original's, and what is tolerated of it.

    Raises CertificateError: they differ by more.
    """
    original, structure, probe = planned.checkpoint.model, planned.checkpoint.structure, planned.probe
    with (
        masked(original, structure, planned.mask.kept),
        structure.choices(original) as theirs,
        noting_decisions(original, structure) as decided,
    ):
        expected = run_probe(original, probe, planned.outputs)
    with structure.choices(model) as mine, repeating_decisions(model, structure, decided):
        found = run_probe(model, probe, planned.outputs)
    alike = alike_rows(mine, theirs)
    difference = largest_difference(
        {name: output[alike] for name, output in found.items()},
        {name: output[alike] for name, output in expected.items()},
    )
    tolerance = tolerance_for(expected)
    require_equal("The cut model against the masked original", difference, tolerance)
    return difference, tolerance


def settled(pruned: Pruned, checkpoint: Checkpoint, progress: Progress) -> State:
    """The state dict of a pruned model, whose weights are rounded to what storing them keeps.

    Args:
        checkpoint: with the storage types of what is left.
    """
    if pruned.parts is not None:
        return pruned.parts.stored(progress)
    round_to_storage(pruned.model, checkpoint)
    return pruned.model.state_dict()


def without_bypassed(planned: Pruning, model: nn.Module, plan: Plan) -> tuple[Checkpoint, Plan]:
    """Remove bypassed blocks from a pruned model: the checkpoint with the config, and the plan, of what is left."""
    original = planned.checkpoint
    shortening = Shortening.of(original.structure.kinds, planned.mask.kept)
    if shortening is None:
        return original, plan
    shortening.apply(model)
    blueprint = original.blueprint.builder.with_blocks(original.blueprint, model, shortening.rule, shortening.kept)
    places = {name: shortening.moved(name) for name in original.types}
    types = {place: original.types[name] for name, place in places.items() if place is not None}
    return replace(original, blueprint=blueprint, types=types), shortening.plan(plan)


def _certify(planned: Pruning, pruned: Pruned, folder: Path, reload: Reload) -> Certificate:
    """Reload the folder in a fresh process without optin and compare it with the model in memory."""
    blueprint, probe = planned.checkpoint.blueprint, planned.probe
    mapped = None if pruned.parts is None else pruned.parts.mapped
    loader, loading = blueprint.builder.reloading(blueprint, plain=planned.settings is not None, mapped=mapped)
    expected = run_probe(pruned.model, probe, planned.outputs)
    sentences, note = blueprint.sentences, None
    if sentences is not None and not is_installed():
        note = f"sentence-transformers is not installed, so that {sentences.loader}(folder) was not tried."
    elif sentences is not None and sentences.embeds:
        hidden, mask = expected[planned.outputs[0]], probe["attention_mask"].bool()
        expected[NAME] = planned.checkpoint.structure.embedding(hidden, mask)
    names, generating = [*expected], None
    if blueprint.purpose == "next-token-prediction":
        generating = plan_generation(pruned.model, probe, planned.checkpoint.input.most)
    if generating is not None:
        loading += generating.code()
    found = reload(folder, loading, probe, [*names, *(generating.names if generating else [])])
    difference = largest_difference(expected, found)
    require_equal("The reloaded folder against the cut model", difference, pruned.tolerance)
    return Certificate(
        probe=f"{PROBE_ROWS} rows of random {planned.checkpoint.input.noun}",
        loader=loader,
        outputs=names,
        reloaded=difference,
        masked=pruned.difference,
        tolerance=pruned.tolerance,
        note=note,
        generation=judge_generation(found) if generating else None,
    )


def _manifest(
    planned: Pruning,
    cost: tuple[Costs, Totals],
    adjustment: Adjustment | None,
    refit: dict[str, Refit] | None,
    certificate: Certificate,
) -> Manifest:
    """The record of a pruned folder. cost: the original's costs, and what the pruned model costs."""
    checkpoint, mask, blueprint = planned.checkpoint, planned.mask, planned.checkpoint.blueprint
    packages = [blueprint.library, *([PACKAGE] if blueprint.sentences is not None and is_installed() else [])]
    inputs = {**checkpoint.sources, "mask": planned.source}
    inputs |= {"scoring": mask.inputs["calibration"]} if "calibration" in mask.inputs else {}
    inputs |= {} if adjustment is None else {"calibration": adjustment.data}
    return Manifest(
        optin_version=__version__,
        options={**mask.options, **({} if adjustment is None else adjustment.options)},
        inputs={role: source.published for role, source in inputs.items()},
        family=checkpoint.structure.family,
        architecture=blueprint.model_class,
        model_class=blueprint.model_class,
        auto_class=blueprint.auto_class,
        workload=mask.workload,
        budget=cost[0].recount(mask.budget, planned.mask.kept),
        before=cost[0].totals,
        after=cost[1],
        layout=DECI if mask.options.get("layout") == DECI else "ragged" if planned.settings is None else "uniform",
        groups=mask.groups,
        left_out=checkpoint.left_out,
        refit=refit,
        certificate=certificate,
        versions={
            "python": platform.python_version(),
            "safetensors": safetensors.__version__,
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
    )
