"""Plot the metric of a sweep against MACs and latency: PNG and SVG by matplotlib, and plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.artifacts.sweep import Sweep, SweepPoint
from optin_cli.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PICTURES = ("sweep.png", "sweep.svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's palette, which readers with any colour vision can distinguish."""
MARKERS = "os^Dv<>P"
SIGNS = "●▲■◆▼○△□"
STYLE = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "optin"}
METADATA: Mapping[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Nothing that differs between two runs of equal content."""
WIDTH, HEIGHT = 60, 14
LABEL_WIDTH = 56
"""Characters that fit below one of two panels."""


def by_recipe(sweep: Sweep) -> dict[str, list[SweepPoint]]:
    """Points of each recipe, from few MACs to many."""
    names = dict.fromkeys(point.recipe for point in sweep.points)
    ordered = sorted(sweep.points, key=lambda point: point.macs_ratio)
    return {name: [point for point in ordered if point.recipe == name] for name in names}


def write_pictures(sweep: Sweep, folder: Path) -> list[Path]:
    """Write PNG and SVG; none, and none of an earlier sweep left, where matplotlib is missing."""
    targets = [folder / name for name in PICTURES]
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        for target in targets:
            target.unlink(missing_ok=True)
        return []
    timed = sweep.baseline.latency is not None and all(point.latency_ratio is not None for point in sweep.points)
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(11 if timed else 6.5, 4.8), layout="constrained")
        panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
        _draw(panels[0], sweep, [point.macs_ratio for point in sweep.points])
        panels[0].set_xlabel(f"MACs, share of the original ({sweep.workload.shape})")
        panels[0].set_ylabel(_metric_label(sweep))
        if timed:
            _draw(panels[1], sweep, [point.latency_ratio or 0.0 for point in sweep.points])
            _label_latency(panels[1], sweep)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5 if timed else 3, frameon=False)
        figure.suptitle(_title(sweep), fontsize=12)
        for target in targets:
            suffix = target.suffix[1:]
            with atomic_file(target, force=True) as temporary:
                figure.savefig(temporary, format=suffix, dpi=160, metadata=METADATA[suffix])
    return targets


def _title(sweep: Sweep) -> str:
    return f"{sweep.inputs['checkpoint'].name} on {sweep.task} ({sweep.split}, {sweep.samples:,} samples)"


def _metric_label(sweep: Sweep) -> str:
    known = any(point.standard_error is not None for point in sweep.points)
    return f"{sweep.metric} (bars: standard error)" if known else sweep.metric


def _draw(axes: Axes, sweep: Sweep, places: Sequence[float]) -> None:
    """One line a recipe over `places`, one of each point of the sweep, and the original."""
    place = {id(point): x for point, x in zip(sweep.points, places, strict=True)}
    original = sweep.baseline.value
    axes.axhline(original, color="#555555", linestyle="--", linewidth=1.2, label=f"original ({original:.4f})")
    if isinstance(most := sweep.options.get("max_drop"), (int, float)):
        limit = sweep.limit(most)
        axes.axhline(limit, color="#999999", linestyle=":", linewidth=1.2, label=f"allowed ({limit:.4f})")
    for number, (name, unordered) in enumerate(by_recipe(sweep).items()):
        points = sorted(unordered, key=lambda point: place[id(point)])
        axes.errorbar(
            [place[id(point)] for point in points],
            [point.value for point in points],
            yerr=[point.standard_error or 0.0 for point in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=6,
            linewidth=1.6,
            elinewidth=1,
            capsize=3,
            label=name,
        )
    if sweep.chosen is not None:
        point = sweep.points[sweep.chosen]
        axes.plot([place[id(point)]], [point.value], "o", ms=14, mfc="none", mec="#222222", zorder=5, label="chosen")
    axes.set_xlim(0, max([1.0, *places]) * 1.05)
    axes.grid(alpha=0.25)


def _label_latency(axes: Axes, sweep: Sweep) -> None:
    latency = sweep.baseline.latency
    if latency is None:
        return
    axes.set_xlabel(
        "latency, share of the original, timed side by side\n"
        f"(batch {latency.batch_size}, {latency.shape}; original {latency.median_ms:.3g} ms)\n"
        + textwrap.fill(latency.timed_on, LABEL_WIDTH, break_on_hyphens=False)
    )


def draw_text(sweep: Sweep) -> str:
    """The metric over the share of MACs in plain characters, for a terminal."""
    original = sweep.baseline.value
    values = [original, *(point.value for point in sweep.points)]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    grid = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]

    def row_of(value: float) -> int:
        return round(HEIGHT * (high - value) / spread)

    grid[row_of(original)] = ["┄"] * (WIDTH + 1)
    recipes = by_recipe(sweep)
    for sign, points in reversed([*zip(_signs(len(recipes)), recipes.values(), strict=True)]):
        for point in points:
            grid[row_of(point.value)][min(WIDTH, round(WIDTH * point.macs_ratio))] = sign
    ticks = {row_of(high): high, row_of(low): low, row_of(original): original}
    lines = [f"{sweep.metric}, {_title(sweep)}"]
    lines += [
        f"{f'{ticks[number]:.4f}' if number in ticks else '':>8} │{''.join(row).rstrip()}"
        for number, row in enumerate(grid)
    ]
    lines.append(" " * 9 + "└" + "─" * (WIDTH + 1))
    axis = "".join(f"{share:<{WIDTH // 4}g}" for share in (0, 0.25, 0.5, 0.75)) + "1"
    lines.append(" " * 10 + axis + "  share of the MACs")
    legend = [f"{sign} {name}" for sign, name in zip(_signs(len(recipes)), recipes, strict=True)]
    lines.append(" " * 10 + "  ".join([*legend, "┄ original"]))
    return "\n".join(lines)


def _signs(count: int) -> list[str]:
    return [SIGNS[number % len(SIGNS)] for number in range(count)]
