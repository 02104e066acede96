"""Collect the artifacts that belong to one model, matched by hash.

The original checkpoint is the anchor. The manifest of a pruned folder names its mask by hash, the mask names its
scores, an evaluation names the checkpoint that it measured, and a sweep or profile names the original. A file that
the user named and that does not match is an error; a file that merely lies in the folder is left out with a note.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optin_cli.artifacts.base import Source, Workload, require_description, require_source
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.reading import Read, artifacts_in, read_artifact
from optin_cli.artifacts.scores import Scores
from optin_cli.checkpoints.folders import MANIFEST, folder_source
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.progress import SILENT, Progress

SWEEP = "sweep.json"
BESIDE_CUT = ("mask", "scores", "profile", "eval", "sweep")
BESIDE_SWEEP = ("scores", "profile")
"""Kinds that are also looked for beside a cut folder, and beside a sweep of which no model was written."""


@dataclass(frozen=True)
class Evidence:
    """The artifacts of a report; None or empty where nothing was found.

    original: the checkpoint that everything was made from. pruned: the pruned folder, by the hash that evaluations
    record. ties: for each file name, how it was matched, in words.
    """

    original: Source
    pruned: Source | None = None
    manifest: Read | None = None
    mask: Read | None = None
    scores: Read | None = None
    profile: Read | None = None
    evaluations: tuple[Read, ...] = ()
    sweeps: tuple[Read, ...] = ()
    ties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A file, and whether the user named it, it lies in the folder, or only beside the folder."""

    read: Read
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
        inside = [*artifacts_in(folder), *(read_artifact(path) for path in sorted(folder.glob(f"*/{SWEEP}")))]
        found += [Found(read, named=False) for read in inside if read.kind != "manifest"]
        if folder == cut or (folder / SWEEP).is_file():
            kinds = BESIDE_SWEEP if cut is None else BESIDE_CUT
            beside = (read for read in artifacts_in(folder.resolve().parent) if read.kind in kinds)
            found += [Found(read, named=False, beside=True) for read in beside]
    if cut is None:
        evidence = Evidence(original=_anchor(found, folder))
    else:
        manifest = read_artifact(cut / MANIFEST)
        original = manifest.head.inputs["checkpoint"]
        evidence = Evidence(original=original, pruned=folder_source(cut), manifest=manifest)
    for add in (_add_mask, _add_scores, _add_profile, _add_evaluations, _add_sweeps):
        evidence = add(evidence, found, progress)
    return evidence


def _read_as(kind: str, path: str | Path) -> Read:
    read = read_artifact(path)
    if read.kind != kind:
        raise UsageError(f"{path} is a {read.kind} file; expected a {kind} file.", hint=f"Pass it with --{read.kind}.")
    return read


def _cut_folder(folder: Path) -> Path | None:
    if (folder / MANIFEST).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if len(inside) > 1:
        raise UsageError(
            f"{folder} holds {len(inside)} cut models: {', '.join(path.name for path in inside)}.",
            hint=f"Report one of them: optin report {inside[0]}",
        )
    return inside[0] if inside else None


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


def _of(found: Iterable[Found], kind: str) -> list[Found]:
    return [item for item in found if item.read.kind == kind]


def _fitting(found: Sequence[Found], check: Callable[[Read], None], what: str, progress: Progress) -> list[Read]:
    """The files that pass `check`, each once; a named file that fails is an error."""
    fits: dict[str, Read] = {}
    for item in found:
        problem = _problem(item.read, check)
        if problem is None:
            fits.setdefault(item.read.sha256, item.read)
        elif item.named:
            raise problem
        elif not item.beside:
            progress.note(f"Left out {item.read.name}: {problem.message}")
    named = {item.read.sha256 for item in found if item.named}
    chosen = [read for sha, read in fits.items() if sha in named] or [*fits.values()]
    for read in fits.values():
        if read not in chosen:
            progress.note(f"Left out {read.name}: another {what} was named.")
    return chosen


def _problem(read: Read, check: Callable[[Read], None]) -> ArtifactError | None:
    try:
        check(read)
    except ArtifactError as error:
        return error
    return None


def _one(found: Sequence[Found], check: Callable[[Read], None], what: str, progress: Progress) -> Read | None:
    """The single file that matches; None if several do, unless the user named them, which is an error."""
    reads = _fitting(found, check, what, progress)
    if len(reads) > 1:
        names = ", ".join(read.name for read in reads)
        if any(item.named for item in found):
            raise UsageError(f"There are {len(reads)} {what} files: {names}; expected one.")
        progress.note(f"Left out {names}: all of them fit. Name one with --{what} FILE.")
    return reads[0] if len(reads) == 1 else None


def _of_original(evidence: Evidence) -> Callable[[Read], None]:
    def check(read: Read) -> None:
        require_source(read.head, read.name, "checkpoint", evidence.original)

    return check


def _tied(evidence: Evidence, read: Read | None, how: str) -> dict[str, str]:
    return evidence.ties if read is None else {**evidence.ties, read.name: how}


def _add_mask(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    manifest = evidence.manifest

    def check(read: Read) -> None:
        if manifest is None:
            _of_original(evidence)(read)
        else:
            require_source(manifest.head, _folder_name(evidence), "mask", Source(name=read.name, sha256=read.sha256))

    mask = _one(_of(found, "mask"), check, "mask", progress)
    how = "the cut model's record names its hash" if manifest is not None else "made from the same checkpoint"
    return replace(evidence, mask=mask, ties=_tied(evidence, mask, how))


def _folder_name(evidence: Evidence) -> str:
    return evidence.pruned.name if evidence.pruned is not None else "the cut model"


def _add_scores(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    mask = evidence.mask.head if evidence.mask is not None else None
    chosen_by = mask is not None and "scores" in mask.inputs

    def check(read: Read) -> None:
        _of_original(evidence)(read)
        if mask is not None and evidence.mask is not None and chosen_by:
            require_source(mask, evidence.mask.name, "scores", Source(name=read.name, sha256=read.sha256))
        _require_description(evidence, read)
        for source in (evidence.mask, evidence.manifest):
            if source is not None and isinstance(read.content, Scores):
                _require_groups(source, read, read.content)

    scores = _one(_of(found, "scores"), check, "scores", progress)
    loosely = "made from the same checkpoint; no mask at hand names its hash"
    how = "the mask names its hash" if chosen_by else loosely
    return replace(evidence, scores=scores, ties=_tied(evidence, scores, how))


def _require_description(evidence: Evidence, read: Read) -> None:
    """Refuse what was made with another architecture description than the mask: its groups may be others."""
    masked = evidence.mask or evidence.manifest
    if masked is not None:
        require_description(read.head, read.name, masked.head.inputs.get("architecture"), f"{masked.name} was made")


def _require_groups(masked: Read, read: Read, scores: Scores) -> None:
    groups = masked.content.groups if isinstance(masked.content, (Mask, Manifest)) else {}
    for name, group in groups.items():
        units = scores.header.groups[name].units if name in scores.header.groups else 0
        if units != group.units:
            raise ArtifactError(f"{read.name} scores {units} units of {name}, but {masked.name} has {group.units}.")


def _add_profile(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    workload = _workload(evidence)

    def check(read: Read) -> None:
        _of_original(evidence)(read)
        _require_description(evidence, read)
        if workload is not None and isinstance(read.content, Profile) and read.content.workload != workload:
            raise ArtifactError(
                f"{read.name} is of inputs of {read.content.workload.shape}; expected {workload.shape}."
            )

    profile = _one(_of(found, "profile"), check, "profile", progress)
    return replace(evidence, profile=profile, ties=_tied(evidence, profile, "made from the same checkpoint"))


def _workload(evidence: Evidence) -> Workload | None:
    for read in (evidence.manifest, evidence.mask):
        if read is not None and isinstance(read.content, (Manifest, Mask)):
            return read.content.workload
    return None


def _add_evaluations(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    models = [source for source in (evidence.pruned, evidence.original) if source is not None]

    def check(read: Read) -> None:
        inputs = read.head.inputs
        measured, against = inputs.get("checkpoint"), inputs.get("against")
        of_a_cut_one = evidence.pruned is None and against is not None and against.sha256 == evidence.original.sha256
        if measured is None or not (of_a_cut_one or measured.sha256 in {source.sha256 for source in models}):
            require_source(read.head, read.name, "checkpoint", models[0])

    reads = _fitting(_of(found, "eval"), check, "eval", progress)
    ties = dict(evidence.ties)
    for read in reads:
        ties[read.name] = f"measured {read.head.inputs['checkpoint'].name}, by the hash of its weights and config"
    return replace(evidence, evaluations=tuple(reads), ties=ties)


def _add_sweeps(evidence: Evidence, found: Sequence[Found], progress: Progress) -> Evidence:
    reads = _fitting(_of(found, "sweep"), _of_original(evidence), "sweep", progress)
    ties = {**evidence.ties, **{read.name: "made from the same checkpoint" for read in reads}}
    return replace(evidence, sweeps=tuple(reads), ties=ties)
