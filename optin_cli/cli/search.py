"""`optin search`: masks within budgets, from a scores file, and a small picture of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common
from optin_cli.cli.parameters import command
from optin_cli.errors import UsageError
from optin_cli.options.declare import BUDGET
from optin_cli.options.scoring import UNITS
from optin_cli.options.search import BudgetOptions, SearchOptions

if TYPE_CHECKING:
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.artifacts.mask import Mask
    from optin_cli.artifacts.scores import ScoresHeader


BLOCK = UNITS["blocks"]


@command
def search(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="What optin score wrote; - for stdin.", show_default=False)
    ],
    *,
    budget: BudgetOptions,
    latency_table: Annotated[
        str | None,
        typer.Option(
            "--latency-table", metavar="TABLE", help="What optin profile --latency wrote.", rich_help_panel=BUDGET
        ),
    ] = None,
    output: Annotated[
        str | None, common.output("NAME.mask.json", "Where to write, a folder for several; - for stdout.")
    ] = None,
    options: SearchOptions,
    every: common.Every = False,
    as_json: common.Json = False,
    force: common.Force = False,
) -> None:
    """Choose the units to keep within a budget of compute, parameters or measured time."""
    budgets = budget.each()
    if (budget.latency is None) != (latency_table is None):
        raise UsageError(
            "--keep-latency and --latency-table go together.",
            hint="Measure with optin profile CKPT --latency, then pass --keep-latency 0.6 --latency-table FILE.",
        )
    table = None if latency_table is None else _read_table(latency_table)
    to_stdout = output == common.STDIO or (as_json and output is None)
    if to_stdout and len(budgets) > 1:
        raise UsageError(
            "Several masks cannot go to one stdout.", hint="Ask for one budget, or pass -o FOLDER for several."
        )
    folder = Path(output) if output is not None and len(budgets) > 1 else None
    targets = [common.STDIO] if to_stdout else _targets(output, folder, common.stem_of(scores), budgets)
    if folder is not None and not folder.exists():
        common.require_free(folder, force=force, folder=True, into=True)
    else:
        for target in targets:
            common.require_free(target, force=force, inputs=(scores, latency_table))
    from optin_cli.artifacts.scores import read_scores
    from optin_cli.searching.limits import Limits
    from optin_cli.searching.search import search as search_mask

    read = read_scores(scores)
    masks = []
    for shares in budgets:
        limits = Limits(
            keep_macs=shares.get("macs"),
            keep_parameters=shares.get("parameters"),
            round_to=options.round_to,
            minima={"head": options.min_heads, "neuron": options.min_neurons},
            protect=options.protect,
            layout=options.layout,
            keep_latency=shares.get("latency"),
            latency_table=table,
        )
        names = {"name": common.name_of(scores), "table_name": common.name_of(latency_table or "")}
        masks.append(search_mask(read, limits, algorithm=options.algorithm, **names))
    _write({target: mask.dump() for target, mask in zip(targets, masks, strict=True)}, folder, force=force)
    from optin_cli.cli.mask_picture import picture

    kinds = {name: group.kind for name, group in read.header.groups.items()}
    for mask, target in zip(masks, targets, strict=True):
        drawn = picture(mask, kinds, width=common.console(error=True).width, every=every)
        made = [drawn, *emptied_notes(mask, read.header), *uniform_notes(mask, read.header)]
        common.finish(f"search {scores}", made, then=_next(mask, target))
        common.print_result(mask.dump(), target, as_json=as_json)


def _write(masks: dict[str, str], folder: Path | None, *, force: bool) -> None:
    """Write masks by the names of their files, several of them together. folder: of several, if they have one."""
    from optin_cli.artifacts.together import write_together
    from optin_cli.files import atomic_folder, write_text

    if len(masks) == 1:
        for target, text in masks.items():
            write_text(target, text, force=force)
    elif folder is not None and not folder.exists():
        with atomic_folder(folder) as temporary:
            for target, text in masks.items():
                (temporary / Path(target).name).write_bytes(text.encode())
    else:
        write_together({Path(target): text for target, text in masks.items()}, force=force)


def _next(mask: Mask, target: str) -> list[list[str]]:
    """How to cut by the mask; nothing where it went to another command."""
    if target == common.STDIO:
        return []
    scored = mask.inputs.get("calibration")
    data = None if scored is None else scored.data
    is_found = (
        data is not None and scored is not None and (not data.local or scored.places(Path(), Path(target).parent))
    )
    return [["prune", mask.inputs["checkpoint"].place, "--mask", target, *([] if is_found else ["--calib", "PATH"])]]


def emptied_notes(mask: Mask, header: ScoresHeader) -> list[str]:
    """Which layers lose all of their heads, neurons, … though they stay."""
    lost: dict[str, list[str]] = {}
    kinds = {UNITS[name] for name in ("heads", "neurons", "channels", "experts")}
    blocks = {
        header.groups[name].block: group.kept for name, group in mask.groups.items() if _kind(name, header) == BLOCK
    }
    for name, group in mask.groups.items():
        kind, block = _kind(name, header), header.groups[name].block
        if kind in kinds and not group.kept and blocks.get(block, True):
            lost.setdefault(kind, []).append(block)
    return [f"warning: no {kind} is left in {', '.join(layers)}" for kind, layers in lost.items()]


def _kind(group: str, header: ScoresHeader) -> str:
    return header.groups[group].kind


def uniform_notes(mask: Mask, header: ScoresHeader) -> list[str]:
    """What a layout cost against the mask of the same limits without it, and what it holds whole."""
    if mask.ragged_importance_lost is None or mask.importance_lost is None:
        return []
    from optin_cli.searching.uniform import pinned_classes

    lost, ragged = mask.importance_lost, mask.ragged_importance_lost
    widths = "equal widths" if mask.options["layout"] == "uniform" else f"widths of the layout {mask.options['layout']}"
    notes = [f"{widths} lose {lost:.4g} of importance, per-layer widths would lose {ragged:.4g}"]
    notes[0] += f": {lost / ragged:.3g} times as much" if lost > ragged > 0 else ""
    if pinned := pinned_classes(header.groups):
        notes.append(
            f"stays whole: {', '.join(pinned)}, because a stock {header.architecture} config cannot describe fewer"
        )
    return notes


def _read_table(path: str) -> LatencyTable:
    """Read a latency table; warn if it was measured on another device than this one."""
    from optin_cli.artifacts.base import parse
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.files import read_bytes
    from optin_cli.profiling.devices import other_device

    name = common.name_of(path)
    table = parse(LatencyTable, read_bytes(path, "latency"), name)
    if (difference := other_device(table.device, table.threads)) is not None:
        common.say(f"warning: {name} was {difference}. Times differ between devices, and so will what is reached.")
    return table


def _targets(output: str | None, folder: Path | None, stem: str, budgets: list[dict[str, float]]) -> list[str]:
    if len(budgets) == 1:
        return [output or f"{stem}.mask.json"]
    names = ["-".join(f"{share:g}" for share in budget.values()) for budget in budgets]
    if len(set(names)) < len(names):
        raise UsageError("The same budget is listed twice.")
    if folder is None:
        return [f"{stem}.mask-{name}.json" for name in names]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but several masks need a folder.", hint="Pass -o FOLDER.")
    return [str(folder / f"mask-{name}.json") for name in names]
