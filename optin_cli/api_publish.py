"""The Python API of what leaves the house: a checkpoint or a pruned folder in; an exported file or a page out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optin_cli.calibration import Note
from optin_cli.checkpoint import Checkpoint, as_checkpoint
from optin_cli.export_record import Export
from optin_cli.exporting import target_named
from optin_cli.exporting.writing import export_checkpoint
from optin_cli.reporting import Report, write_report
from optin_cli.scoring import Progress


def export(
    checkpoint: Checkpoint | str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    opset: int | None = None,
    seq_len: int | None = None,
    force: bool = False,
    progress: Progress = lambda _done, _total, _what: None,
) -> Export:
    """Write a checkpoint as a file that a runtime runs, certified against the model in memory in a fresh process.

    Args:
        to: a target: onnx, torch-export or openvino.
        output: the file or its folder. Where none is given, the checkpoint's own folder, if that is how it was given,
            and else a folder named after both.
        opset: version of ONNX operators, None for the exporter's own choice.
        seq_len: length of text that MACs are recorded for.

    Raises:
        OptinError: a package is missing, the model cannot be expressed, or the runtime computes something else.
    """
    target = target_named(to)
    beside = None if isinstance(checkpoint, Checkpoint) or not Path(checkpoint).is_dir() else checkpoint
    opened = as_checkpoint(checkpoint, "cpu")
    place = Path(output or beside or f"{opened.name.rpartition('/')[2]}-{target.name}")
    return export_checkpoint(opened, target, place, opset=opset, seq_len=seq_len, force=force, progress=progress)


def report(
    folder: str | Path | None,
    output: str | Path,
    *,
    mask: str | Path | None = None,
    scores: str | Path | None = None,
    profile: str | Path | None = None,
    evaluations: Sequence[str | Path] = (),
    sweeps: Sequence[str | Path] = (),
    force: bool = False,
    note: Note = lambda _message: None,
) -> Report:
    """Write one self-contained HTML page of a pruned model, and return what it says.

    Args:
        folder: one that `prune` or `sweep` wrote, or that holds artifacts; what lies beside a pruned or sweep folder
            is found by its hash.
        mask, scores, profile, evaluations, sweeps: files to take besides, which must fit.
        note: told what lies in the folder but does not fit.

    Raises:
        OptinError: artifacts that do not belong together, nothing to report, or an output that exists.
    """
    single = {"mask": mask, "scores": scores, "profile": profile}
    files: dict[str, Sequence[str | Path]] = {kind: [path] for kind, path in single.items() if path is not None}
    files |= {"eval": evaluations, "sweep": sweeps}
    return write_report(folder, output, files=files, force=force, note=note)


__all__ = ["Export", "Report", "export", "report"]
