"""Score a share of the calibration samples, and make the scores of the whole run from all shares.

A part holds the sums of every portion of its own (`portions.py`), so that merging adds them in the order in which one
run would: the scores are the same bytes. It also holds what removal curves take of the model, so that merging needs
neither checkpoint nor data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from optin_cli.artifacts.part import Curved, PartHeader, read_part_header
from optin_cli.artifacts.scores import HEADER, GroupScores, Scores
from optin_cli.artifacts.tensor_files import require_few_axes
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.files import atomic_file
from optin_cli.model.arithmetic import reproducible
from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.options.shard import Shard
from optin_cli.processes.portions import cut_portions
from optin_cli.progress import SILENT, Progress
from optin_cli.scoring.accumulate import Accumulator, require_finite
from optin_cli.scoring.kinds import KIND_ESTIMATORS
from optin_cli.scoring.moments import Layer, Moments, with_intercept
from optin_cli.scoring.one_shot import assemble_scores, plan_run
from optin_cli.scoring.products import DimSums
from optin_cli.scoring.score import prepare
from optin_cli.version import __version__

WEIGHT, SIDES = "weight.", ("basis.", "dual.")
"""What the names of tensors of the model begin with."""
BY_LAYER = "slimgpt"
"""The criterion whose losses are errors of a layer's output, which no unit's sensitivity is."""


@dataclass(frozen=True)
class ScoredPart:
    """A part: its header, and the tensors of its file by their names there."""

    header: PartHeader
    tensors: Mapping[str, torch.Tensor]


@reproducible()
def score_part(
    checkpoint: Checkpoint | str | Path,
    data: DataSpec | str | Path | None,
    shard: Shard,
    options: ScoreOptions | None = None,
    *,
    seq_len: int | None = None,
    progress: Progress = SILENT,
) -> ScoredPart:
    """Sum one share of a run that `merge_parts` finishes; arguments as of `score`.

    The sums of each portion lie in memory until they are written.

    Raises:
        UsageError: units or a criterion that are not scored in parts, or more parts than the run has portions.
        OptinError: as of `score`.
    """
    options = options or ScoreOptions()
    require_divisible(options)
    ready = prepare(checkpoint, data, options, seq_len=seq_len, progress=progress)
    opened, calibration, options = ready.checkpoint, ready.calibration, ready.options
    if opened.processes.count > 1:
        raise UsageError("A part is scored in one process.", hint="Leave out torchrun, or --shard.")
    assert calibration is not None
    run = plan_run(opened, calibration, options, ready.seq_len)
    portions = cut_portions([job.weight for job in run.jobs], shard.count)
    mine = shard.of(len(portions))
    todo = [(number, place) for number in mine for place in portions[number]]
    parts = {number: Accumulator(run.extra) for number in mine}
    tensors: dict[str, torch.Tensor] = {}
    for done, (number, place) in enumerate(todo):
        progress.update(done, len(todo), run.jobs[place].what)
        parts[number].add(run.jobs[place].run())
        if place + 1 == portions[number].stop:
            tensors |= {f"{number}.{name}": tensor.cpu().clone() for name, tensor in parts[number].tensors().items()}
            for tensor in run.extra.values():
                tensor.zero_()
    progress.update(1, 1, "averaging")
    centred = with_intercept(
        opened.model, opened.structure.with_groups(run.curved), calibration.batches[0].to(opened.device)
    )
    layers = {group: Layer.of(opened.model, group, centred=group.consumer in centred) for group in run.curved}
    tensors |= {f"{WEIGHT}{group.consumer}": layer.weight.cpu() for group, layer in layers.items()}
    tensors |= {f"{SIDES[side]}{name}": own.basis[side].cpu() for name, own in run.dims.items() for side in range(2)}
    nothing = dict.fromkeys(run.estimators, torch.zeros(0))
    header = PartHeader(
        optin_version=__version__,
        options=run.identity.options,
        inputs=dict(run.identity.inputs),
        shard=shard.number,
        shards=shard.count,
        portions=len(portions),
        counts={str(number): sums.counts for number, sums in parts.items()},
        fingerprint=run.identity.fingerprint(),
        scores=assemble_scores(opened, run.identity, run.estimators, nothing, Accumulator()).header,
        curved={g.name: Curved(consumer=g.consumer, centred=layer.centred) for g, layer in layers.items()},
        dims=tuple(run.dims),
    )
    return ScoredPart(header, tensors)


def require_divisible(options: ScoreOptions) -> None:
    """Refuse what is not a sum over samples (UsageError)."""
    if not CRITERIA[options.criterion].needs_data:
        raise UsageError(f"The criterion {options.criterion} sees no samples to divide.", hint="Leave out --shard.")
    if whole := [name for name in options.units if name in KIND_ESTIMATORS]:
        raise UsageError(
            f"The importance of {whole[0]} is measured on refitted models, which parts of the samples do not give.",
            hint=f"Leave {whole[0]} out of --units, or share the run by torchrun in place of --shard.",
        )


def write_part(path: Path, part: ScoredPart, *, force: bool = False) -> None:
    """Write atomically."""
    with atomic_file(path, force=force) as temporary:
        save_file(dict(part.tensors), temporary, metadata={HEADER: part.header.dump()})


@reproducible()
def merge_parts(paths: Sequence[str | Path], *, progress: Progress = SILENT) -> Scores:
    """The scores that one run over all samples gives, from all its parts in any order.

    Raises:
        ArtifactError: a file is no part, or damaged; a part is missing or given twice; or one is of another run.
    """
    headers = {Path(path): read_part_header(Path(path)) for path in paths}
    require_whole(headers, paths)
    ordered = sorted(headers, key=lambda path: headers[path].shard)
    first = headers[ordered[0]]
    totals: Accumulator | None = None
    for path in ordered:
        with opened_part(path) as file:
            for number, counts in headers[path].counts.items():
                progress.update(int(number), first.portions, path.name)
                portion = read_portion(file, number, counts)
                if totals is None:
                    totals = Accumulator({name: torch.zeros_like(tensor) for name, tensor in portion.extra.items()})
                totals.take(portion)
    assert totals is not None
    with opened_part(ordered[0]) as file:
        importance = finish(first, totals, file)
    groups = {
        name: GroupScores(**group.model_dump() | {"samples": totals.counts.get(name, 0)})
        for name, group in first.scores.groups.items()
    }
    errors = {name: totals.standard_error(name).float().numpy() for name in groups if name in totals.sums}
    progress.update(1, 1, "averaging")
    return Scores(
        first.scores.model_copy(update={"groups": groups}),
        {name: importance[name].float().numpy() for name in groups},
        errors,
    )


def finish(header: PartHeader, totals: Accumulator, file: Any) -> dict[str, torch.Tensor]:
    """Importance of all units by group name. file: a part, for what it holds of the model."""
    importance = {name: totals.mean(name) for name in header.scores.groups}
    options = header.options
    sums = {path: Moments.of(_under(totals, path)) for path in {one.consumer for one in header.curved.values()}}
    require_finite({**importance, **{path: found.diagonals() for path, found in sums.items()}})
    for name, one in header.curved.items():
        layer = Layer(name, header.scores.groups[name].units, file.get_tensor(f"{WEIGHT}{one.consumer}"), one.centred)
        squared = None if options["criterion"] == BY_LAYER else importance[name]
        importance[name] = layer.importance(sums[one.consumer], float(str(options["damping"])), squared)
    for name in header.dims:
        basis = tuple(file.get_tensor(f"{side}{name}") for side in SIDES)
        importance[name] = DimSums.read((basis[0], basis[1]), _under(totals, name)).importance(totals.mean(name))
    require_finite({name: importance[name] for name in header.dims})
    return importance


def _under(totals: Accumulator, owner: str) -> dict[str, torch.Tensor]:
    """Extra tensors of a consumer or group, by their own names (`Planned.extra`)."""
    end = f".{owner}"
    return {name.removesuffix(end): tensor for name, tensor in totals.extra.items() if name.endswith(end)}


@contextlib.contextmanager
def opened_part(path: Path) -> Iterator[Any]:
    """The tensors of a part's file, read as they are asked for (ArtifactError where it is damaged)."""
    try:
        require_few_axes(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a complete part file: {error}.", hint="Score this part again.") from error


def read_portion(file: Any, number: str, counts: Mapping[str, int]) -> Accumulator:
    """The sums of a portion."""
    found: dict[str, dict[str, torch.Tensor]] = {"sum": {}, "square": {}, "extra": {}}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        place, _, rest = key.partition(".")
        if place == number:
            role, _, name = rest.partition(".")
            found[role][name] = file.get_tensor(key)
    sums = Accumulator(found["extra"])
    sums.sums, sums.squares, sums.counts, sums.done = found["sum"], found["square"], dict(counts), 1
    return sums


def require_whole(headers: Mapping[Path, PartHeader], given: Sequence[str | Path]) -> None:
    """Refuse parts that do not make up one run (ArtifactError)."""
    if len(headers) < len(given):
        twice = next(path for path in headers if [Path(each) for each in given].count(path) > 1)
        raise ArtifactError(f"{twice} is given twice.", hint="Give every part once.")
    (first, whole), *others = headers.items()
    for path, header in others:
        if (difference := next(differences(header, whole), None)) is not None:
            raise ArtifactError(
                f"{path} is not of the same run as {first}: {difference}.",
                hint="Score all parts by the same command, with only --shard and -o different.",
            )
    found: dict[int, Path] = {}
    for path, header in headers.items():
        if header.shard in found:
            raise ArtifactError(f"{found[header.shard]} and {path} are both part {header.name}.")
        found[header.shard] = path
    if missing := [f"{number}/{whole.shards}" for number in range(1, whole.shards + 1) if number not in found]:
        raise ArtifactError(
            f"{'Part' if len(missing) == 1 else 'Parts'} {', '.join(missing)} of {whole.shards} "
            f"{'is' if len(missing) == 1 else 'are'} missing.",
            hint=f"Run optin score with --shard {missing[0]} and the other options of the parts that are there.",
        )
    for path, header in headers.items():
        expected = Shard(header.shard, header.shards).of(header.portions)
        if [int(number) for number in header.counts] != [*expected]:
            raise ArtifactError(f"{path} does not hold the portions of part {header.name}.", hint="Score it again.")


def differences(header: PartHeader, other: PartHeader) -> Iterator[str]:
    """How a part differs from one of another run, in words."""
    if header.optin_version != other.optin_version:
        yield f"it was made by optin {header.optin_version}, not {other.optin_version}"
    for role in sorted(header.inputs.keys() | other.inputs.keys()):
        mine, theirs = (one.inputs.get(role) for one in (header, other))
        if mine is None or not mine.is_same(theirs):
            words = [f"{one.name} (sha256 {one.sha256[:12]})" if one else "none" for one in (mine, theirs)]
            yield f"its {role} is {words[0]}, not {words[1]}"
    for key in header.options:
        if header.options[key] != other.options.get(key):
            yield f"its option {key} is {header.options[key]}, not {other.options.get(key)}"
    if header.shards != other.shards:
        yield f"it is part {header.name}, that is part {other.name}"
    if header.scores.workload != other.scores.workload:
        yield f"its costs are stated for {header.scores.workload.shape}, not {other.scores.workload.shape}"
    if header.fingerprint != other.fingerprint:
        yield "its samples were made into other batches, by another tokenizer or preprocessing"
