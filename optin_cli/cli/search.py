"""`optin search`: a scores file and budgets in; masks out, and a small picture of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optin_cli.cli import common, completion
from optin_cli.errors import UsageError
from optin_cli.options.scoring import UNITS

if TYPE_CHECKING:
    from optin_cli.artifacts.base import Source
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.artifacts.mask import Mask
    from optin_cli.artifacts.scores import ScoresHeader


Shares = tuple[float | None, float | None, float | None]
"""Of MACs, parameters and time."""


BAR = 16


SIGNS = 24


EIGHTHS = " ▏▎▍▌▋▊▉█"


def search(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="What optin score wrote; - for stdin.", show_default=False)
    ],
    keep_flops: Annotated[
        str | None,
        typer.Option(metavar="SHARE[,…]", help="Share of the model's MACs to keep: 0.5, or 0.6,0.5,0.4."),
    ] = None,
    keep_params: Annotated[
        str | None, typer.Option(metavar="SHARE[,…]", help="Share of the model's parameters to keep.")
    ] = None,
    keep_latency: Annotated[
        str | None, typer.Option(metavar="SHARE[,…]", help="Share of the measured time to keep; with --latency-table.")
    ] = None,
    latency_table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="What optin profile --latency wrote.")
    ] = None,
    output: common.Output = None,
    algorithm: Annotated[
        str,
        typer.Option(
            help="exact (integer program) or optin (the paper's search).", autocompletion=completion.algorithms
        ),
    ] = "exact",
    round_to: Annotated[int, typer.Option(help="Kept widths come in multiples of this (8, 16, 32).")] = 1,
    min_heads: Annotated[int, typer.Option(help="Fewest heads left in a layer.")] = 0,
    min_neurons: Annotated[int, typer.Option(help="Fewest neurons left in a layer.")] = 0,
    layout: Annotated[
        str,
        typer.Option(
            metavar="ragged|uniform",
            help="uniform: the same number of units in every layer, so that the stock class loads the result.",
        ),
    ] = "ragged",
    protect: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="Group that stays whole; encoder.0.* works; repeatable."),
    ] = None,
    as_json: common.Json = False,
    force: common.Force = False,
) -> None:
    """The best mask within a budget of FLOPs, parameters or measured time."""
    from optin_cli.artifacts.mask import LAYOUTS
    from optin_cli.artifacts.scores import read_scores
    from optin_cli.files import write_text
    from optin_cli.search.choose import ALGORITHMS
    from optin_cli.search.limits import Limits
    from optin_cli.search.search import search as find

    if algorithm not in ALGORITHMS:
        raise UsageError(f"Unknown algorithm {algorithm!r}.", hint=f"Known: {', '.join(ALGORITHMS)}.")
    if layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {layout!r}.", hint=f"Known: {', '.join(LAYOUTS)}.")
    budgets = _budgets(keep_flops, keep_params, keep_latency)
    table, table_source = _read_table(keep_latency, latency_table)
    to_stdout = output == common.STDIO or (as_json and output is None)
    if to_stdout and len(budgets) > 1:
        raise UsageError(
            "Several masks cannot go to one stdout.",
            hint="Ask for one budget, or pass -o FOLDER for several.",
        )
    folder = Path(output) if output is not None and len(budgets) > 1 else None
    targets = [common.STDIO] if to_stdout else _targets(output, folder, common.stem_of(scores), budgets)
    if folder is not None and not folder.exists():
        common.require_free(folder, force=force, folder=True)
    else:
        for target in targets:
            common.require_free(target, force=force)
    read = read_scores(scores)
    name = "stdin" if scores == common.STDIO else Path(scores).name
    masks = []
    for flops, parameters, time in budgets:
        limits = Limits(
            keep_macs=flops,
            keep_parameters=parameters,
            round_to=round_to,
            minima={"head": min_heads, "neuron": min_neurons},
            protect=tuple(protect or ()),
            layout=layout,
            keep_latency=time,
            latency_table=table,
        )
        masks.append(
            find(
                read,
                limits,
                algorithm=algorithm,
                name=name,
                table_name="" if table_source is None else table_source.name,
            )
        )
    if folder is not None:
        folder.mkdir(exist_ok=True)
    for mask, target in zip(masks, targets, strict=True):
        write_text(target, mask.dump(), force=force)
        common.stderr().print(
            picture(mask, {n: (g.block, g.kind) for n, g in read.header.groups.items()}), soft_wrap=True
        )
        for line in uniform_notes(mask, read.header):
            common.say(line)
        if target != common.STDIO:
            typer.echo(mask.dump() if as_json else target, nl=not as_json)


def uniform_notes(mask: Mask, header: ScoresHeader) -> list[str]:
    """What a uniform layout cost against the mask of the same limits whose layers differ, and what it holds whole."""
    if mask.ragged_importance_lost is None or mask.importance_lost is None:
        return []
    from optin_cli.search.uniform import pinned_classes

    lost, ragged = mask.importance_lost, mask.ragged_importance_lost
    more = f"{lost / ragged:.3g} times that" if ragged > 0 else "more"
    notes = [f"uniform layout: loses {lost:.4g} of the importance; layers of different widths would lose {ragged:.4g}"]
    notes[0] += f" (uniform: {more})" if lost > ragged else ""
    if pinned := pinned_classes(header.groups):
        notes.append(f"stays whole: {', '.join(pinned)}, of which the config of {header.architecture} states no less")
    return notes


def _shares(text: str | None, option: str) -> list[float | None]:
    return [None] if text is None else [*common.shares_of(text, option)]


def _budgets(keep_flops: str | None, keep_params: str | None, keep_latency: str | None) -> list[Shares]:
    """Shares of (MACs, parameters, time); a single value goes with every value of the other lists."""
    given = {"--keep-flops": keep_flops, "--keep-params": keep_params, "--keep-latency": keep_latency}
    if all(text is None for text in given.values()):
        raise UsageError("No budget was given.", hint="Pass --keep-flops 0.5, --keep-params 0.5 or both.")
    lists = {option: _shares(text, option) for option, text in given.items()}
    longest = max(lists, key=lambda option: len(lists[option]))
    count = len(lists[longest])
    for option, shares in lists.items():
        if len(shares) not in (1, count):
            raise UsageError(f"{longest} lists {count} budgets and {option} {len(shares)}.")
    flops, parameters, time = (shares * (count // len(shares)) for shares in lists.values())
    return list(zip(flops, parameters, time, strict=True))


def _read_table(keep_latency: str | None, path: str | None) -> tuple[LatencyTable | None, Source | None]:
    """The latency table and its name and hash; warns where it was measured on something else than what is here."""
    if (keep_latency is None) != (path is None):
        raise UsageError(
            "--keep-latency and --latency-table go together.",
            hint="Measure with optin profile CKPT --latency, then pass --keep-latency 0.6 --latency-table FILE.",
        )
    if path is None:
        return None, None
    from optin_cli.artifacts.base import Source, parse
    from optin_cli.artifacts.latency import LatencyTable
    from optin_cli.files import read_bytes, sha256_of

    name = "stdin" if path == common.STDIO else Path(path).name
    content = read_bytes(path, "latency")
    table = parse(LatencyTable, content, name)
    from optin_cli.profiling.devices import other_device

    if (difference := other_device(table.device, table.threads)) is not None:
        common.say(f"warning: {name} was {difference}. Times differ between devices, and so will what is reached.")
    return table, Source(name=name, sha256=sha256_of(content))


def _targets(output: str | None, folder: Path | None, stem: str, budgets: list[Shares]) -> list[str]:
    if len(budgets) == 1:
        return [output or f"{stem}.mask.json"]
    names = ["-".join(f"{share:g}" for share in budget if share is not None) for budget in budgets]
    if len(set(names)) < len(names):
        raise UsageError("The same budget is listed twice.")
    if folder is None:
        return [f"{stem}.mask-{name}.json" for name in names]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but several masks need a folder.", hint="Pass -o FOLDER.")
    return [str(folder / f"mask-{name}.json") for name in names]


def picture(mask: Mask, groups: dict[str, tuple[str, str]]) -> str:
    """Kept units by block: one sign a unit for groups of up to SIGNS units, a bar for larger ones.

    Of tokens, those that leave the block of the ones that may merge.

    Args:
        groups: (block, kind) by group name.
    """
    reached = ", ".join(f"{share:.4f} of the {name}" for name, share in mask.budget.reached.items())
    lines = [f"keeps {reached}"]
    by_block: dict[str, list[str]] = {}
    tokens = None
    for name, group in mask.groups.items():
        block, kind = groups[name]
        kept, left, units = set(group.kept), len(group.kept), group.units
        if kind == UNITS["tokens"]:
            tokens = left = -(-(units if tokens is None else tokens) * left // units)
        if kind != UNITS["tokens"] and units <= SIGNS:
            drawn = "".join("●" if u in kept else "○" for u in range(units))
        else:
            eighths = round(8 * BAR * left / units)
            drawn = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
            drawn = drawn.ljust(BAR, "·")
        by_block.setdefault(block, []).append(f"{kind} {drawn} {left:>{len(str(units))}}/{units}")
    width = max(map(len, by_block))
    lines += [f"{block:<{width}}  {'  '.join(parts)}" for block, parts in by_block.items()]
    return "\n".join(lines)
