"""A checkpoint and a mask in; a certified, physically smaller checkpoint folder out."""

from __future__ import annotations

import copy
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors
import torch
from torch import nn

from optin_cli.architectures.registry import known_heads
from optin_cli.artifacts.base import Options, Source, Totals, require_description, require_source
from optin_cli.artifacts.manifest import Certificate, Manifest, Refit
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.batches import encode, read_samples
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.folders import CARD, MANIFEST, weight_files
from optin_cli.checkpoints.save import round_to_storage, save_cut
from optin_cli.checkpoints.synthetic_inputs import PROBE_ROWS, example_inputs, probe_inputs
from optin_cli.checkpoints.token_checks import require_kinds
from optin_cli.checkpoints.verify import largest_difference, require_equal, run_probe, run_probe_fresh, tolerance_for
from optin_cli.errors import ArtifactError, UsageError, did_you_mean
from optin_cli.files import atomic_folder, sha256_of
from optin_cli.model.costs import count_macs, count_parameters
from optin_cli.model.cut import PrunedModel, added_biases, cut
from optin_cli.model.masking import masked
from optin_cli.model.plan import Plan
from optin_cli.model.structure import alike_rows
from optin_cli.options.images import ImageOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.pruning import model_card as card
from optin_cli.pruning.config import stock_settings
from optin_cli.refit.refit import refit_model
from optin_cli.version import __version__


def check_mask(checkpoint: Checkpoint, mask: Mask, name: str) -> None:
    """Refuse a mask of another checkpoint or architecture description, or whose groups are not those of the model.

    Raises:
        ArtifactError: with the first group that does not fit.
    """
    require_source(mask, name, "checkpoint", checkpoint.source)
    require_description(mask, name, checkpoint.description, f"{checkpoint.name} was opened")
    require_kinds(checkpoint, mask.groups)
    groups = checkpoint.structure.units
    for group_name, kept in mask.groups.items():
        if group_name not in groups:
            raise ArtifactError(
                f"{name} masks the group {group_name!r}, which {checkpoint.name} does not have.",
                hint=did_you_mean(group_name, groups),
            )
        if kept.units != groups[group_name]:
            raise ArtifactError(
                f"{name} says that {group_name} has {kept.units} units; "
                f"in {checkpoint.name} it has {groups[group_name]}."
            )
    for kind in checkpoint.structure.kinds:
        kind.check({n: group.kept for n, group in mask.groups.items()}, name)


def cut_copy(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> tuple[nn.Module, Plan]:
    """A cut copy of the checkpoint's model, and the plan that gives a stock model its shapes."""
    model = copy.deepcopy(checkpoint.model)
    plan = cut(model, checkpoint.structure, kept)
    return model, Plan.model_validate(checkpoint.plan).then(plan) if checkpoint.plan else plan


def prune_checkpoint(
    checkpoint: Checkpoint,
    mask: Mask,
    mask_source: Source,
    output: Path,
    *,
    adjust: Callable[[nn.Module], dict[str, Refit]] | None = None,
    adjusted_with: Source | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Cut, adjust the cut weights, save and certify.

    Args:
        adjust: changes the weights of the cut model in place (refit) and tells what it did.
        adjusted_with: name and hash of the data that `adjust` used, for the manifest.
        options: further constants for the manifest.
        output: folder to write; appears only when everything succeeded.
        progress: told what is being done.

    Raises:
        ArtifactError: the mask does not belong to the checkpoint, or is of a uniform layout that the stock class
            cannot express.
        CertificateError: the reloaded folder computes something else; nothing is written.
    """
    check_mask(checkpoint, mask, mask_source.name)
    settings = stock_settings(checkpoint, mask, mask_source.name)
    kept = {name: group.kept for name, group in mask.groups.items()}
    names = [rule.name for rule in checkpoint.structure.outputs]
    probe = probe_inputs(checkpoint, mask.workload.seq_len)
    loader, loading = checkpoint.builder.reloading(checkpoint.blueprint, stock=settings is not None)
    workload_inputs = example_inputs(checkpoint, mask.workload)
    with atomic_folder(output, force=force) as folder:
        progress.update(0, 1, "cutting")
        structure = checkpoint.structure
        with masked(checkpoint.model, structure, kept), structure.choices(checkpoint.model) as theirs:
            masked_outputs = run_probe(checkpoint.model, probe, names)
        before = Totals(
            macs=count_macs(checkpoint.model, workload_inputs)[0],
            parameters=count_parameters(checkpoint.model),
            bytes=checkpoint.weight_bytes,
        )
        model, plan = cut_copy(checkpoint, kept)
        with structure.choices(model) as mine:
            cut_outputs = run_probe(model, probe, names)
        tolerance = tolerance_for(masked_outputs)
        alike = alike_rows(mine, theirs)
        masked_difference = largest_difference(
            {name: output[alike] for name, output in cut_outputs.items()},
            {name: output[alike] for name, output in masked_outputs.items()},
        )
        require_equal("The cut model against the masked original", masked_difference, tolerance)
        refit = adjust(model) if adjust is not None else None
        plan = plan.then(added_biases(checkpoint.model, model, structure))
        round_to_storage(model, checkpoint.dtype)
        cut_outputs = run_probe(model, probe, names)
        progress.update(1, 1, "saving")
        save_cut(checkpoint, model, plan, folder, settings=settings)
        progress.update(1, 1, "certifying in a fresh process")
        reloaded = run_probe_fresh(folder, loading, probe, names)
        reloaded_difference = largest_difference(cut_outputs, reloaded)
        require_equal("The reloaded folder against the cut model", reloaded_difference, tolerance)
        manifest = Manifest(
            optin_version=__version__,
            options={**mask.options, **(options or {})},
            inputs={
                **checkpoint.sources,
                "mask": mask_source,
                **({"scoring": mask.inputs["calibration"]} if "calibration" in mask.inputs else {}),
                **({"calibration": adjusted_with} if adjusted_with is not None else {}),
            },
            family=checkpoint.structure.family,
            architecture=checkpoint.model_class,
            model_class=checkpoint.model_class,
            auto_class=checkpoint.auto_class,
            workload=mask.workload,
            budget=mask.budget,
            before=before,
            after=Totals(
                macs=count_macs(model, workload_inputs)[0],
                parameters=count_parameters(model),
                bytes=sum(path.stat().st_size for path in weight_files(folder)),
            ),
            layout="ragged" if settings is None else "uniform",
            groups=mask.groups,
            refit=refit,
            certificate=Certificate(
                probe=f"{PROBE_ROWS} rows of random {'tokens' if checkpoint.image is None else 'pixels'}",
                loader=loader,
                outputs=names,
                reloaded=reloaded_difference,
                masked=masked_difference,
                tolerance=tolerance,
            ),
            versions={
                "python": platform.python_version(),
                "safetensors": safetensors.__version__,
                "torch": torch.__version__,
                checkpoint.library: importlib.metadata.version(checkpoint.library),
            },
        )
        (folder / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
        how = checkpoint.builder.loading(checkpoint.blueprint, stock=settings is not None)
        text = card.write_card(
            manifest,
            checkpoint.library,
            how,
            front=card.read_front(checkpoint.folder),
            pipeline=known_heads()[checkpoint.auto_class].pipeline,
            licence_files=sorted(path.name for path in folder.glob("LICENSE*")),
        )
        (folder / CARD).write_text(text, encoding="utf-8")
    return manifest


def prune(
    checkpoint: Checkpoint | str | Path,
    mask: Mask,
    output: str | Path,
    *,
    calib: str | None = None,
    data: str | Path | None = None,
    columns: Sequence[str] | None = None,
    options: RefitOptions | None = None,
    force: bool = False,
    name: str = "mask",
    progress: Progress = SILENT,
    images: ImageOptions | None = None,
) -> Manifest:
    """Cut a checkpoint by a mask into the folder `output`, certified by a reload in a fresh process.

    Args:
        calib, data: unlabelled texts or images to refit the consumers on; with neither, the kept weights stay.
        name: of the mask, for messages and the manifest.
        images, note: as for `score`.
    """
    source = Source(name=name, sha256=sha256_of(mask.dump().encode()))
    opened = as_checkpoint(checkpoint)
    if calib is None and data is None:
        return prune_checkpoint(opened, mask, source, Path(output), force=force, progress=progress)
    options = options or RefitOptions()
    check_mask(opened, mask, name)
    if stock_settings(opened, mask, name) is not None and options.add_bias:
        raise UsageError(
            "--add-bias gives layers a bias that the stock class has no place for, but the mask's layout is uniform.",
            hint="Leave out --add-bias.",
        )
    samples = read_samples(
        opened,
        calib,
        data=data,
        split="calibration",
        columns=columns,
        limit=options.samples,
        seed=options.seed,
        images=images,
        progress=progress,
    )
    batches = [*encode(opened, samples, batch_size=options.batch_size, max_length=options.max_length)]
    kept = {group: part.kept for group, part in mask.groups.items()}

    def adjust(model: nn.Module) -> dict[str, Refit]:
        pruned = PrunedModel(opened.model, model, opened.structure, kept)
        return refit_model(pruned, batches, options, progress=progress)

    return prune_checkpoint(
        opened,
        mask,
        source,
        Path(output),
        adjust=adjust,
        adjusted_with=Source(name=samples.name, sha256=samples.sha256),
        options={f"refit_{key}": value for key, value in asdict(options).items()},
        force=force,
        progress=progress,
    )
