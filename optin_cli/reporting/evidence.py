"""Collect the artifacts that belong to one model, matched by hash.

The original checkpoint is the anchor. The manifest of a pruned folder names its mask by hash, the mask names its
scores, an evaluation names the checkpoint that it measured, and a sweep or profile names the original. A file that
the user named and that does not match is an error; a file that merely lies in the folder is left out with a note.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optin_cli.artifacts.base import Source, require_description, require_source
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.reading import Read, artifacts_in, read_artifact
from optin_cli.artifacts.scores import Scores, ScoresHeader
from optin_cli.artifacts.sweep import RESULT, Sweep
from optin_cli.checkpoints.folders import MANIFEST, folder_source
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.progress import SILENT, Progress

BESIDE_CUT = ("mask", "scores", "profile", "eval", "sweep")
BESIDE_SWEEP = ("scores", "profile")
"""Kinds that are also looked for beside a cut folder, and beside a sweep of which no model was written."""


@dataclass(frozen=True)
class Evidence:
    """The artifacts of a report; None or empty where nothing was found.

    original: the checkpoint that everything was made from. pruned: the pruned folder, by the hash that evaluations
    record; cut: where it lies. scores: the file, or its header alone, which says only what units cost.
    """

    original: Source
    pruned: Source | None = None
    cut: Path | None = None
    manifest: Read[Manifest] | None = None
    mask: Read[Mask] | None = None
    scores: Read[Scores | ScoresHeader] | None = None
    profile: Read[Profile] | None = None
    evaluations: tuple[Read[Evaluation], ...] = ()
    sweeps: tuple[Read[Sweep], ...] = ()

    @property
    def reads(self) -> list[Read[Any]]:
        """Every artifact, the pruned model's record first."""
        single = (self.manifest, self.mask, self.scores, self.profile)
        return [*(read for read in single if read is not None), *self.evaluations, *self.sweeps]

    @property
    def costs(self) -> list[ScoresHeader | Profile]:
        """What states the costs of the original's groups: the scores, then a profile."""
        heads: list[Any] = [read.head for read in (self.scores, self.profile) if read is not None]
        return heads


@dataclass(frozen=True)
class Found:
    """A file, and whether the user named it, it lies in the folder, or only beside the folder."""

    read: Read[Any]
    named: bool
    beside: bool = False


def gather(folder: Path | None, files: Mapping[str, Sequence[str | Path]], *, progress: Progress = SILENT) -> Evidence:
    """Collect what a folder and the named files say about one model.

    Args:
        folder: written by `optin prune` or `optin sweep`, or holding artifacts (and such folders).
        files: artifacts to use besides, by kind (mask, scores, profile, eval, sweep); they must match.
        progress: receives a note for every file in the folder that is left out.

    Raises:
        ArtifactError: a named file is invalid, or was made from something else than the rest.
        UsageError: there is nothing to report, or more than one pruned model.
    """
    found = [Found(_read_as(kind, path), named=True) for kind, paths in files.items() for path in paths]
    cut = None
    if folder is not None:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UsageError(
                f"{folder} {what}; expected a folder.", hint="Pass single files with --mask, --scores, --eval, --sweep."
            )
        cut = _cut_folder(folder)
        inside = [
            *artifacts_in(folder, progress.note),
            *(read_artifact(path) for path in sorted(_visible(folder, RESULT))),
        ]
        found += [Found(read, named=False) for read in inside if read.kind != "manifest"]
        if folder == cut or (folder / RESULT).is_file():
            kinds = BESIDE_SWEEP if cut is None else BESIDE_CUT
            beside = (read for read in artifacts_in(folder.resolve().parent) if read.kind in kinds)
            found += [Found(read, named=False, beside=True) for read in beside]
    if cut is None:
        evidence = Evidence(original=_anchor(found, folder))
    else:
        manifest = _read_as("manifest", cut / MANIFEST)
        original = manifest.head.inputs["checkpoint"]
        evidence = Evidence(original=original, pruned=folder_source(cut), cut=cut, manifest=manifest)
    for add in (_add_mask, _add_scores, _add_profile, _add_evaluations, _add_sweeps):
        evidence = add(evidence, found, progress)
    return evidence


def _read_as(kind: str, path: str | Path) -> Read[Any]:
    read = read_artifact(path)
    if read.kind != kind:
        raise UsageError(f"{path} is a {read.kind} file; expected a {kind} file.", hint=f"Pass it with --{read.kind}.")
    return read


def _cut_folder(folder: Path) -> Path | None:
    if (folder / MANIFEST).is_file():
        return folder
    inside = sorted(path.parent for path in _visible(folder, MANIFEST))
    if len(inside) > 1:
        raise UsageError(
            f"{folder} holds {len(inside)} cut models: {', '.join(path.name for path in inside)}.",
            hint=f"Report one of them: optin report {inside[0]}",
        )
    return inside[0] if inside else None


def _visible(folder: Path, name: str) -> list[Path]:
    """Files of a name in the folders inside, less hidden ones, which runs that were killed leave."""
    return [path for path in folder.glob(f"*/{name}") if not path.parent.name.startswith(".")]


def _anchor(found: Sequence[Found], folder: Path | None) -> Source:
    """The original when no pruned model names it: that of the named files, else that of the folder's files."""
    for named in (True, False):
        sources: dict[str, Source] = {}
        for item in found:
            inputs = item.read.head.inputs
            if item.named == named and (source := inputs.get("against") or inputs.get("checkpoint")):
                sources.setdefault(source.sha256, source)
        if len(sources) > 1:
            names = ", ".join(f"{s.name} (sha256 {s.sha256[:12]})" for s in sources.values())
            raise UsageError(
                f"The artifacts are of {len(sources)} checkpoints: {names}.",
                hint="Pass a folder that prune wrote, or files of one checkpoint.",
            )
        if sources:
            return next(iter(sources.values()))
    raise UsageError(
        f"{folder} holds nothing to report." if folder is not None else "There is nothing to report.",
        hint="Pass a folder that optin prune or optin sweep wrote, or --mask, --scores, --eval or --sweep files.",
    )


def _fitting(
    found: Sequence[Found], kind: str, check: Callable[[Read[Any]], None], progress: Progress
) -> list[Read[Any]]:
    """The files of a kind that pass `check`, each once; a named file that fails is an error."""
    found = [item for item in found if item.read.kind == kind]
    fits: dict[str, Read[Any]] = {}
    for item in found:
        try:
            check(item.read)
        except ArtifactError as problem:  # noqa: PERF203 - a folder holds few files
            if item.named:
                raise
            if not item.beside:
                progress.note(f"Left out {item.read.name}: {problem.message}")
        else:
            fits.setdefault(item.read.sha256, item.read)
    named = {item.read.sha256 for item in found if item.named}
    chosen = [read for sha, read in fits.items() if sha in named] or [*fits.values()]
    for read in fits.values():
        if read not in chosen:
            progress.note(f"Left out {read.name}: another {kind} was named.")
    return chosen


def _one(found: Sequence[Found], kind: str, check: Callable[[Read[Any]], None], progress: Progress) -> Read[Any] | None:
    """The single file that matches; None if several do, unless the user named them, which is an error."""
    reads = _fitting(found, kind, check, progress)
    if len(reads) > 1:
        names = ", ".join(read.name for read in reads)
        if any(item.named for item in found if item.read.kind == kind):
            raise UsageError(f"There are {len(reads)} {kind} files: {names}; expected one.")
        progress.note(f"Left out {names}: all of them fit. Name one with --{kind} FILE.")
    return reads[0] if len(reads) == 1 else None


def _require_original(evidence: Evidence, read: Read[Any]) -> None:
    require_source(read.head, read.name, "checkpoint", evidence.original)


def _add_mask(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    def check(read: Read[Mask]) -> None:
        if evidence.manifest is None or evidence.pruned is None:
            _require_original(evidence, read)
        else:
            source = Source(name=read.name, sha256=read.sha256)
            require_source(evidence.manifest.content, evidence.pruned.name, "mask", source)

    return replace(evidence, mask=_one(found, "mask", check, progress))


def _add_scores(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    mask = evidence.mask
    maskings: list[Read[Any]] = [read for read in (mask, evidence.manifest) if read is not None]

    def check(read: Read[Scores | ScoresHeader]) -> None:
        _require_original(evidence, read)
        if mask is not None and "scores" in mask.content.inputs:
            require_source(mask.content, mask.name, "scores", Source(name=read.name, sha256=read.sha256))
        _require_description(evidence, read)
        if not isinstance(read.content, Scores):
            return
        scored = read.content.header.groups
        for masked in maskings:
            for name, group in masked.content.groups.items():
                units = scored[name].units if name in scored else 0
                if units != group.units:
                    raise ArtifactError(
                        f"{read.name} scores {units} units of {name}, but {masked.name} has {group.units}."
                    )

    return replace(evidence, scores=_one(found, "scores", check, progress))


def _require_description(evidence: Evidence, read: Read[Any]) -> None:
    """Refuse what was made with another architecture description than the mask: its groups may be others."""
    masked = evidence.mask or evidence.manifest
    if masked is not None:
        require_description(read.head, read.name, masked.head.inputs.get("architecture"), f"{masked.name} was made")


def _add_profile(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    masked = evidence.manifest or evidence.mask

    def check(read: Read[Profile]) -> None:
        _require_original(evidence, read)
        _require_description(evidence, read)
        if masked is not None and read.content.workload != masked.content.workload:
            raise ArtifactError(
                f"{read.name} is of inputs of {read.content.workload.shape}; expected {masked.content.workload.shape}."
            )

    return replace(evidence, profile=_one(found, "profile", check, progress))


def _add_evaluations(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    models = [source for source in (evidence.pruned, evidence.original) if source is not None]

    def check(read: Read[Evaluation]) -> None:
        measured, against = (read.head.inputs.get(role) for role in ("checkpoint", "against"))
        of_a_cut_one = evidence.pruned is None and against is not None and against.sha256 == evidence.original.sha256
        if measured is None or not (of_a_cut_one or measured.sha256 in {source.sha256 for source in models}):
            require_source(read.head, read.name, "checkpoint", models[0])

    return replace(evidence, evaluations=tuple(_fitting(found, "eval", check, progress)))


def _add_sweeps(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    check = partial(_require_original, evidence)
    return replace(evidence, sweeps=tuple(_fitting(found, "sweep", check, progress)))
