"""Tables that show artifacts to people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

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

if TYPE_CHECKING:
    from optin_cli.artifacts.evaluation import Latency

MOST_CLASSES = 40
"""How many classes a table gives the IoU of."""


def profile_table(result: Profile) -> Table:
    """The profile as a table for people."""
    totals = result.totals
    table = Table(
        title=f"{result.inputs['checkpoint'].name}: {totals.macs / 1e6:,.1f} M MACs, "
        f"{totals.parameters / 1e6:,.2f} M parameters, {totals.bytes / 1e6:,.1f} MB",
        caption=f"MACs are multiply-accumulates at batch {result.workload.batch_size}, {result.workload.shape}; "
        "shares are of the whole model.",
    )
    table.add_column("group", no_wrap=True)
    for heading in ("units", "MACs/unit", "params/unit", "MACs", "share", "params", "share"):
        table.add_column(heading, justify="right")
    macs = parameters = 0.0
    whole = {group.block for group in result.groups.values() if group.kind == BLOCK}
    for name, group in result.groups.items():
        group_macs, group_parameters = group.units * group.unit_macs, group.units * group.unit_parameters
        # What two groups share is counted with the first.
        shared = [(both, group.units * result.groups[other].units) for other, both in group.shared.items()]
        if group.kind == BLOCK or group.block not in whole:  # a whole block counts what is in it
            macs += group_macs - sum(both.macs * pairs for both, pairs in shared)
            parameters += group_parameters - sum(both.parameters * pairs for both, pairs in shared)
        table.add_row(
            name,
            f"{group.units:,}",
            f"{group.unit_macs:,.0f}",
            f"{group.unit_parameters:,}",
            *_share(group_macs, totals.macs),
            *_share(group_parameters, totals.parameters),
        )
    table.add_section()
    for name, m, p in (
        ("prunable", macs, parameters),
        ("cannot be pruned", totals.macs - macs, totals.parameters - parameters),
    ):
        table.add_row(name, "", "", "", *_share(m, totals.macs), *_share(p, totals.parameters))
    return table


def _share(part: float, whole: float) -> tuple[str, str]:
    return f"{part / 1e6:,.2f} M", f"{part / whole:.1%}"


def latency_table(result: LatencyTable) -> Table:
    """Measured times as a table for people; layers of the same shapes have the same times."""
    work = result.workload
    table = Table(
        title=f"{result.inputs['checkpoint'].name}: {result.total_ms:.2f} ms",
        caption=f"batch {work.batch_size}, {work.shape}, {result.timed_on}; times are what that many kept units add.",
    )
    table.add_column("group", no_wrap=True)
    table.add_column("kept units: ms")
    table.add_column("share", justify="right")
    for name, ladder in result.groups.items():
        steps = "  ".join(f"{units:,}: {ms:.3f}" for units, ms in zip(ladder.units, ladder.ms, strict=True))
        table.add_row(name, steps, f"{ladder.curve()[-1] / result.total_ms:.1%}")
    return table


def scores_table(scores: Scores) -> Table:
    """Least, median and most importance of each group."""
    caption = "error: median standard error / importance"
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
    table = Table(title=f"{scores.header.criterion} importance", caption=caption)
    table.add_column("group", no_wrap=True)
    for heading in ("units", "estimator", "samples", "least", "median", "most", "error"):
        table.add_column(heading, justify="right")
    for name, group in scores.header.groups.items():
        values = scores.importance[name]
        error = "-"
        if name in scores.standard_error:
            share = scores.standard_error[name][values > 0] / values[values > 0]
            error = f"{sorted(share)[len(share) // 2]:.1%}" if len(share) else "-"
        ordered = sorted(values)
        numbers = (f"{v:.3g}" for v in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
        table.add_row(name, f"{group.units:,}", group.estimator, f"{group.samples:,}", *numbers, error)
    return table


def mask_table(artifact: Mask | Manifest) -> Table:
    """Kept units of each group."""
    reached = ", ".join(f"{share:.4f} of the {name}" for name, share in artifact.budget.reached.items())
    certificate = getattr(artifact, "certificate", None)
    proof = f"; certified within {certificate.reloaded:.2g}" if certificate else ""
    table = Table(title=f"keeps {reached}{proof}")
    table.add_column("group", no_wrap=True)
    for heading in ("kept", "of", "share"):
        table.add_column(heading, justify="right")
    for name, group in artifact.groups.items():
        table.add_row(name, f"{len(group.kept):,}", f"{group.units:,}", f"{len(group.kept) / group.units:.0%}")
    return table


def evaluation_table(result: Evaluation) -> Table:
    """The evaluation as a table for people, with a column for the other model."""
    other = result.against
    data = f"{result.inputs['data'].name}, {result.samples:,} samples" if "data" in result.inputs else "no data"
    data += "" if result.tokens is None else f", {result.tokens:,} tokens predicted"
    table = Table(title=f"{result.inputs['checkpoint'].name} ({data})")
    table.add_column("")
    headings = result.headings
    table.add_column(headings[0], justify="right")
    if other is not None:
        table.add_column(headings[1], justify="right")
        table.add_column("ratio", justify="right")
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
        rows.append(("agreement", f"{other.agreement:.4f}", "", ""))
    if other is not None and other.kl is not None:
        rows.append(("KL (nats)", f"{other.kl:.4g}", "", ""))
    totals = result.totals
    for name, mine, ratio in (
        (f"MACs, {result.workload.shape}", totals.macs, other and other.macs_ratio),
        ("parameters", totals.parameters, other and other.parameters_ratio),
        ("bytes", totals.bytes, other and other.bytes_ratio),
    ):
        rows.append((name, f"{mine:,}", f"{mine / ratio:,.0f}" if ratio else "", f"{ratio:.3f}" if ratio else ""))
    if (latency := result.latency) is not None:
        ratio = other.latency_ratio if other is not None else None
        theirs, shown = (f"{latency.median_ms / ratio:.1f}", f"{ratio:.3f}") if ratio else ("", "")
        rows.append((f"ms, batch {latency.batch_size}, {latency.shape}", f"{latency.median_ms:.1f}", theirs, shown))
        rows.append(("samples/s", f"{latency.samples_per_second:,.0f}", "", ""))
        runtimes = (latency.runtime, "" if other is None else other.runtime)
        if any(name not in ("", "torch") for name in runtimes):
            rows.append(("runtime", *runtimes, ""))
    rows += generation_rows(result)
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
    table = Table(
        title=f"{next(iter(record.files))}: {record.target}{opset}",
        caption=f"{record.totals.macs:,} MACs ({record.workload.shape}), {record.totals.bytes:,} bytes; certified by "
        f"{record.certificate.loader}: differs by {record.certificate.difference:.2g}",
    )
    for heading in ("", "tensor", "type", "shape"):
        table.add_column(heading, no_wrap=True)
    for what, tensors in (("takes", record.takes), ("gives", record.gives)):
        for name, tensor in tensors.items():
            table.add_row(what, name, tensor.dtype, " x ".join(map(str, tensor.shape)))
    return table


def sweep_table(result: Sweep) -> Table:
    """The sweep as a table for people, the original first."""
    latency = result.baseline.latency
    speed = "no latency" if latency is None else f"latency at batch {latency.batch_size}, {latency.shape}"
    table = Table(
        title=f"{result.inputs['checkpoint'].name} on {result.task} ({result.split}, {result.samples:,} samples)",
        caption=f"MACs at {result.workload.shape}, {speed}; shares are of the original; "
        "seconds are of pruning, scoring for all budgets in brackets",
    )
    table.add_column("recipe")
    for heading in ("asked", "MACs", "params", result.metric, "drop", "agreement", "ms", "latency", "seconds"):
        table.add_column(heading, justify="right")
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


def _iou(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ms(latency: Latency | None) -> str:
    return "" if latency is None else f"{latency.median_ms:.1f}"


def vocabulary_table(record: Vocabulary) -> Table:
    """Tokens and size before and after, for people."""
    table = Table(title=f"{record.model_class}: vocabulary")
    for heading in ("", "before", "after", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
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
        caption=f"optin merge makes scores of it and the other {others} part(s)"
        if others
        else "optin merge finishes it",
    )
    table.add_column("portion", justify="right")
    table.add_column("samples", justify="right")
    for number, counts in part.counts.items():
        table.add_row(f"{int(number) + 1} of {part.portions}", f"{max(counts.values(), default=0):,}")
    return table


TABLES: Mapping[type, Callable[[Any], Table]] = {
    Scores: scores_table,
    PartHeader: part_table,
    Profile: profile_table,
    LatencyTable: latency_table,
    Mask: mask_table,
    Manifest: mask_table,
    Evaluation: evaluation_table,
    Export: export_table,
    Sweep: sweep_table,
    Vocabulary: vocabulary_table,
}
"""The table of each artifact."""
