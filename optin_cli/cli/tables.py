"""Tables that show artifacts to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.costs import BLOCK, Profile
from optin_cli.artifacts.evaluation import Evaluation, with_error
from optin_cli.artifacts.export import Export
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.part import PartHeader
from optin_cli.artifacts.scores import Scores
from optin_cli.artifacts.sweep import Sweep
from optin_cli.artifacts.vocabulary import Vocabulary
from optin_cli.cli.fitting import FittingTable
from optin_cli.cli.layers import alike, span, stretches

if TYPE_CHECKING:
    from optin_cli.artifacts.evaluation import Latency

MOST_CLASSES = 40
"""How many classes a table gives the IoU of."""
PREFIXES = {"G": 1e9, "M": 1e6, "k": 1e3}


def profile_table(result: Profile, *, every: bool = False) -> Table:
    """The profile as a table for people. every: a row for each group, not one for all layers that are alike."""
    totals = result.totals
    table = FittingTable(
        title=f"{result.inputs['checkpoint'].name}: {totals.macs / 1e6:,.1f} M MACs, "
        f"{totals.parameters / 1e6:,.2f} M parameters, {totals.bytes / 1e6:,.1f} MB",
        caption=f"MACs are multiply-accumulates at batch {result.workload.batch_size}, {result.workload.shape}; "
        "a unit is one head, neuron, …; units are of one layer, shares of the whole model.",
    )
    table.add_names("group", whole=True)
    table.add_figures("layers", spare=4)
    table.add_figures("units")
    table.add_figures("MACs/unit", spare=2)
    table.add_figures("params/unit", spare=3)
    table.add_figures("MACs (M)", "share")
    table.add_figures("params (M)", "of params", spare=1)
    shown = {
        name: (f"{group.units:,}", f"{group.unit_macs:,.0f}", f"{group.unit_parameters:,}")
        for name, group in result.groups.items()
    }
    for names in [[name] for name in shown] if every else alike(shown):
        group = result.groups[names[0]]
        units = len(names) * group.units
        table.add_row(
            span(names),
            f"{len(names)}",
            *shown[names[0]],
            *_share(units * group.unit_macs, totals.macs),
            *_share(units * group.unit_parameters, totals.parameters),
        )
    table.add_section()
    macs, parameters = _prunable(result)
    for name, m, p in (
        ("prunable", macs, parameters),
        ("cannot be pruned", totals.macs - macs, totals.parameters - parameters),
    ):
        table.add_row(name, "", "", "", "", *_share(m, totals.macs), *_share(p, totals.parameters))
    return table


def _prunable(result: Profile) -> tuple[float, float]:
    """MACs and parameters of all units; what two groups share is counted with the first."""
    macs = parameters = 0.0
    whole = {group.block for group in result.groups.values() if group.kind == BLOCK}
    for group in result.groups.values():
        shared = [(both, group.units * result.groups[other].units) for other, both in group.shared.items()]
        if group.kind == BLOCK or group.block not in whole:  # a whole block counts what is in it
            macs += group.units * group.unit_macs - sum(both.macs * pairs for both, pairs in shared)
            parameters += group.units * group.unit_parameters - sum(both.parameters * pairs for both, pairs in shared)
    return macs, parameters


def _share(part: float, whole: float) -> tuple[str, str]:
    return f"{part / 1e6:,.2f}", f"{part / whole:.1%}"


def latency_table(result: LatencyTable, *, every: bool = False) -> Table:
    """Measured times as a table for people; layers of the same shapes have the same times, and one row."""
    work = result.workload
    table = FittingTable(
        title=f"{result.inputs['checkpoint'].name}: {result.total_ms:.2f} ms",
        caption=f"batch {work.batch_size}, {work.shape}, {result.timed_on}; times are what that many kept units add "
        "to one layer, shares of the whole model's time.",
    )
    table.add_names("group", whole=True)
    table.add_names("kept units = ms")
    table.add_figures("share")
    shown = {
        name: "  ".join(f"{units:,}={ms:.3f}" for units, ms in zip(ladder.units, ladder.ms, strict=True))
        for name, ladder in result.groups.items()
    }
    for names in [[name] for name in shown] if every else alike(shown):
        whole = len(names) * result.groups[names[0]].curve()[-1]
        table.add_row(span(names), shown[names[0]], f"{whole / result.total_ms:.1%}")
    return table


def scores_table(scores: Scores, *, every: bool = False) -> Table:
    """Least, median and most importance of each group, in deep models of neighbouring blocks together."""
    caption = "error: typical uncertainty of a score"
    if (exchange := scores.header.token_exchange) is not None:
        caption += (
            f"; tokens' importances were multiplied by {exchange.rate:.3g}: at {exchange.share:.3g} of the MACs, "
            f"refitted, cut units lost {exchange.units_distance:.3g} for an importance of {exchange.units_lost:.3g}, "
            f"merging {exchange.tokens_distance:.3g} for {exchange.tokens_lost:.3g}"
        )
    if (blocks := scores.header.block_exchange) is not None:
        without = ", ".join(f"{n}: {far:.3g}" for n, far in zip(blocks.depths, blocks.distances, strict=True))
        caption += (
            f"; importances of blocks were scaled: at {blocks.share:.3g} of the MACs, refitted, cut units lost "
            f"{blocks.units_distance:.3g} for an importance of {blocks.units_lost:.3g}; without whole blocks {without}"
        )
    table = FittingTable(title=f"{scores.header.criterion} importance", caption=caption)
    table.add_names("group", whole=True)
    table.add_figures("units")
    table.add_figures("estimator", spare=2)
    table.add_figures("samples", spare=3)
    table.add_figures("least", "median", "most")
    table.add_figures("error", spare=1)
    for names in [[name] for name in scores.header.groups] if every else stretches(scores.header.groups):
        first = scores.header.groups[names[0]]
        values = np.concatenate([scores.importance[name] for name in names])
        errors = [
            scores.standard_error[name][scores.importance[name] > 0]
            / scores.importance[name][scores.importance[name] > 0]
            for name in names
            if name in scores.standard_error
        ]
        ordered = sorted(values)
        numbers = (f"{v:.3g}" for v in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
        units = sum(scores.header.groups[name].units for name in names)
        table.add_row(span(names), f"{units:,}", first.estimator, f"{first.samples:,}", *numbers, _typical(errors))
    return table


def _typical(errors: Sequence[Vector32]) -> str:
    """The median of standard errors, relative to the scores."""
    shares = sorted(value for each in errors for value in each)
    return f"{shares[len(shares) // 2]:.1%}" if shares else "-"


def mask_table(artifact: Mask | Manifest, *, every: bool = False) -> Table:
    """Kept units of each group, in deep models of neighbouring blocks together."""
    certificate = getattr(artifact, "certificate", None)
    proof = f"; certified within {certificate.reloaded:.2g}" if certificate else ""
    table = FittingTable(title=f"{reached_words(artifact.budget.reached)}{proof}")
    table.add_names("group", whole=True)
    table.add_figures("kept", "of", "share")
    for names in [[name] for name in artifact.groups] if every else stretches(artifact.groups):
        kept = sum(len(artifact.groups[name].kept) for name in names)
        units = sum(artifact.groups[name].units for name in names)
        table.add_row(span(names), f"{kept:,}", f"{units:,}", f"{kept / units:.0%}")
    return table


def reached_words(reached: Mapping[str, float]) -> str:
    """What a mask keeps, in words."""
    names = {"macs": "compute (MACs)", "latency": "measured time"}
    return "keeps " + ", ".join(f"{share:.1%} of {names.get(name, name)}" for name, share in reached.items())


def evaluation_table(result: Evaluation) -> Table:
    """The evaluation as a table for people, with a column for the other model."""
    other = result.against
    data = f"{result.inputs['data'].name}, {result.samples:,} samples" if "data" in result.inputs else "no data"
    data += "" if result.tokens is None else f", {result.tokens:,} tokens predicted"
    table = FittingTable(title=f"{result.inputs['checkpoint'].name} ({data})")
    table.add_names()
    own_heading, other_heading = result.headings
    table.add_figures(own_heading)
    if other is not None:
        table.add_figures(other_heading, "ratio")
    rows: list[tuple[str, str, str, str]] = []
    known = {} if other is None else other.known_metrics
    for name, value in result.metrics.items():
        first = result.metric is not None and name == result.metric.name
        theirs = f"{known[name]:.4f}" if name in known else ""
        rows.append((name, with_error(value, result.standard_error if first else None), theirs, ""))
    left_out = len(result.class_iou) - MOST_CLASSES
    for name, iou in [*result.class_iou.items()][:MOST_CLASSES]:
        rows.append((f"IoU of {name}", _iou(iou), _iou(other.class_iou.get(name)) if other else "", ""))
    if other is not None and other.agreement is not None:
        rows.append(("same answers (agreement)", f"{other.agreement:.4f}", "", ""))
    if other is not None and other.kl is not None:
        rows.append(("KL (nats)", f"{other.kl:.4g}", "", ""))
    totals = result.totals
    for name, mine, ratio in (
        ("MACs ({}), " + result.workload.shape, totals.macs, other and other.macs_ratio),
        ("parameters ({})", totals.parameters, other and other.parameters_ratio),
        ("weights ({}B)", totals.bytes, other and other.bytes_ratio),
    ):
        prefix, unit = _prefix(min(mine, mine / ratio if ratio else mine))
        theirs = f"{mine / ratio / unit:,.2f}" if ratio else ""
        shown = name.format(prefix).replace(" ()", "")
        rows.append((shown, f"{mine / unit:,.2f}", theirs, f"{ratio:.3f}" if ratio else ""))
    if (latency := result.latency) is not None:
        ratio = other.latency_ratio if other is not None else None
        theirs, shown = (f"{latency.median_ms / ratio:.1f}", f"{ratio:.3f}") if ratio else ("", "")
        rows.append((f"ms, batch {latency.batch_size}, {latency.shape}", f"{latency.median_ms:.1f}", theirs, shown))
        rows.append(("samples/s", f"{latency.samples_per_second:,.0f}", "", ""))
    rows += generation_rows(result)
    if (measured := result.latency or result.generation) is not None:
        runtimes = (measured.runtime, "" if other is None else other.runtime)
        if any(name not in ("", "torch") for name in runtimes):
            rows.append(("runtime", *runtimes, ""))
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    if left_out > 0:
        table.caption = f"the IoU of {left_out} more classes is in the file"
    return table


def generation_rows(result: Evaluation) -> list[tuple[str, str, str, str]]:
    """Rows of an evaluation's table that say how fast text is generated, and what the model is worth as a draft."""
    rows = []
    if result.generation is not None:
        other = None if result.against is None else result.against.generation
        for name, mine, theirs, ratio in result.generation.rows(other):
            rows.append((name, mine, theirs, "" if ratio is None else f"{ratio:.3f}"))
    if result.draft is not None:
        rows += [(name, value, "", "") for name, value in result.draft.rows().items()]
    return rows


def export_table(record: Export) -> Table:
    """What a file takes and gives, and how it was certified, for people."""
    opset = f", opset {record.opset}" if record.opset is not None else ""
    table = FittingTable(
        title=f"{next(iter(record.files))}: {record.target}{opset}",
        caption=f"{record.totals.macs:,} MACs ({record.workload.shape}), {record.totals.bytes:,} bytes; certified by "
        f"{record.certificate.loader}: differs by {record.certificate.difference:.2g}",
    )
    for heading in ("", "tensor", "type", "shape"):
        table.add_names(heading, whole=heading in ("", "type"))
    for what, tensors in (("takes", record.takes), ("gives", record.gives)):
        for name, tensor in tensors.items():
            table.add_row(what, name, tensor.dtype, " x ".join(map(str, tensor.shape)))
    return table


def sweep_table(result: Sweep) -> Table:
    """The sweep as a table for people, the original first."""
    latency = result.baseline.latency
    speed = "no latency" if latency is None else f"latency at batch {latency.batch_size}, {latency.shape}"
    table = FittingTable(
        title=f"{result.inputs['checkpoint'].name} on {result.task} ({result.split}, {result.samples:,} samples)",
        caption=f"MACs at {result.workload.shape}, {speed}; shares are of the original; agreement: same answers as "
        "the original; seconds are of pruning, scoring for all budgets in brackets",
    )
    table.add_names("recipe")
    table.add_figures("asked", spare=1)
    table.add_figures("MACs")
    table.add_figures("params", spare=4)
    table.add_figures(result.metric, "drop")
    table.add_figures("agreement", spare=3)
    table.add_figures("ms", spare=5)
    table.add_figures("latency", spare=2)
    table.add_figures("seconds", spare=6)
    base = result.baseline
    value = with_error(base.value, base.standard_error)
    table.add_row("original", "", "1", "1", value, "", "", _ms(base.latency), "", "")
    for number, point in enumerate(result.points):
        table.add_row(
            f"{point.recipe} (chosen)" if number == result.chosen else point.recipe,
            f"{point.asked:g}",
            f"{point.macs_ratio:.4f}",
            f"{point.parameters_ratio:.4f}",
            with_error(point.value, point.standard_error),
            result.words_for(point.drop),
            "" if point.agreement is None else f"{point.agreement:.4f}",
            _ms(point.latency),
            "" if point.latency_ratio is None else f"{point.latency_ratio:.3f}",
            f"{point.prune_seconds:.1f} ({point.prepare_seconds:.1f})",
        )
    return table


def _prefix(value: float) -> tuple[str, float]:
    """The unit prefix in which a number has few digits before the point, and what it stands for."""
    return next(((name, size) for name, size in PREFIXES.items() if value >= size), ("", 1.0))


def _iou(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ms(latency: Latency | None) -> str:
    return "" if latency is None else f"{latency.median_ms:.1f}"


def vocabulary_table(record: Vocabulary) -> Table:
    """Tokens and size before and after, for people."""
    table = FittingTable(title=f"{record.model_class}: vocabulary")
    table.add_names()
    table.add_figures("before", "after", "ratio")
    rows = {"tokens": (record.tokens_before, record.tokens_after)} | {
        name: (getattr(record.before, name), getattr(record.after, name)) for name in ("parameters", "bytes", "macs")
    }
    for name, (before, after) in rows.items():
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.3f}")
    return table


def part_table(part: PartHeader) -> Table:
    """Which share of a run a part holds, by portions of the samples."""
    others = part.shards - 1
    table = Table(
        title=f"part {part.name} of {part.scores.criterion} scores: {part.samples:,} samples",
        caption="optin merge makes scores of it" + (f" and the other {others} part(s)" if others else ""),
        min_width=60,  # where the table ends, title and caption are wrapped
    )
    table.add_column("portion", justify="right")
    table.add_column("samples", justify="right")
    for number, counts in part.counts.items():
        table.add_row(f"{int(number) + 1} of {part.portions}", f"{max(counts.values(), default=0):,}")
    return table


TABLES: Mapping[type, Callable[[Any], Table]] = {
    PartHeader: part_table,
    Evaluation: evaluation_table,
    Export: export_table,
    Sweep: sweep_table,
    Vocabulary: vocabulary_table,
}
"""The table of each artifact that has no groups."""
GROUPED: Mapping[type, Callable[..., Table]] = {
    Scores: scores_table,
    Profile: profile_table,
    LatencyTable: latency_table,
    Mask: mask_table,
    Manifest: mask_table,
}
"""The table of each artifact of groups, which takes whether every group gets a row."""
