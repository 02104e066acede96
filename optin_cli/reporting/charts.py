"""Geometry of a report's charts in pixels, which the template writes as SVG."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optin_cli.artifacts.evaluation import with_error
from optin_cli.artifacts.sweep import Sweep, SweepPoint
from optin_cli.reporting.facts import GroupFacts

MOST_CELLS, MOST_HEADS = 32, 256
"""Kinds whose groups have up to this many units are drawn unit by unit; others as bars of how many stay."""
STEPS = 5
CELL, GAP = 20, 3
LETTER = 6.8
"""Width of a letter of the labels."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400.0, 300.0, 58.0, 14.0, 14.0, 46.0
STYLES = 6
ASIDE = 4.0
"""Pixels between the points of two recipes at the same place."""


@dataclass(frozen=True)
class Cell:
    """One unit. step: fifth of importance within its kind, 1 (least) to 5; 0 where it is unknown."""

    unit: int
    x: float
    side: float
    step: int
    kept: bool
    title: str


@dataclass(frozen=True)
class HeatRow:
    """One group: its label, the number of kept units, and its cells."""

    label: str
    y: float
    count: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeatMap:
    """The units of one kind, one row per group."""

    kind: str
    rows: tuple[HeatRow, ...]
    columns: tuple[tuple[int, float], ...]
    left: float
    width: float
    height: float
    legend: tuple[tuple[int, float, str], ...]
    summary: str


@dataclass(frozen=True)
class Mark:
    """A point of a series, with the ends of its error bar if it has one."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str
    chosen: bool


@dataclass(frozen=True)
class Series:
    """The points of one recipe; `style` numbers its colour, dashes and marker."""

    name: str
    style: int
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Plot:
    """A metric against a share, both axes linear."""

    title: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[str, float, str], ...]
    series: tuple[Series, ...]
    this: Mark | None = None
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def is_drawn_by_unit(groups: Sequence[GroupFacts]) -> bool:
    """Whether the groups of a kind are small enough to draw every unit."""
    most = MOST_HEADS if groups[0].kind == "head" else MOST_CELLS
    return max(group.units for group in groups) <= most


def draw_heat_map(kind: str, groups: Sequence[GroupFacts]) -> HeatMap:
    """Draw one square per unit, larger and darker for more importance; removed units are crossed out."""
    values = sorted(v for group in groups for v in group.importance or ())
    bounds = [values[len(values) * step // STEPS] for step in range(1, STEPS)] if values else []
    left = 10 + LETTER * max(len(group.label) for group in groups)
    pitch = CELL + GAP
    top = pitch
    rows = []
    for number, group in enumerate(groups):
        kept = None if group.kept is None else set(group.kept)
        cells = []
        for unit in range(group.units):
            step = 1 + bisect.bisect_right(bounds, group.importance[unit]) if group.importance else 0
            stays = kept is None or unit in kept
            told = f"importance {group.importance[unit]:.3g}" if group.importance else "importance not known"
            fate = "" if kept is None else ", kept" if stays else ", removed"
            title = f"{group.name}, {kind} {unit}: {told}{fate}"
            cells.append(Cell(unit, left + unit * pitch, _side(step), step, stays, title))
        count = f"{group.units}" if kept is None else f"{len(kept)}/{group.units}"
        rows.append(HeatRow(group.label, top + number * pitch, count, tuple(cells)))
    most = max(group.units for group in groups)
    every = 1 if most <= 16 else 4
    edges = [values[0], *bounds, values[-1]] if values else []
    legend = tuple(
        (step, _side(step), f"{edges[step - 1]:.2g} to {edges[step]:.2g}") for step in range(1, STEPS + 1) if edges
    )
    return HeatMap(
        kind=kind,
        rows=tuple(rows),
        columns=tuple((unit, left + unit * pitch + CELL / 2) for unit in range(0, most, every)),
        left=left,
        width=left + most * pitch + 8 + LETTER * max(len(row.count) for row in rows),
        height=top + len(groups) * pitch,
        legend=legend,
        summary=_summary(kind, groups),
    )


def _side(step: int) -> float:
    return CELL - 2.0 if step == 0 else round(CELL * (0.3 + 0.7 * (step - 1) / (STEPS - 1)) - 2.0 * step / STEPS, 1)


def _summary(kind: str, groups: Sequence[GroupFacts]) -> str:
    units = sum(group.units for group in groups)
    if groups[0].kept is None:
        return f"{units:,} {kind}s in {len(groups)} groups; none is removed."
    kept = sum(len(group.kept or ()) for group in groups)
    if kept == units:
        return f"All {units:,} {kind}s are kept."
    whole = [group.label for group in groups if len(group.kept or ()) == group.units]
    empty = [group.label for group in groups if not group.kept]
    parts = [f"{kept:,} of {units:,} {kind}s are kept in {len(groups)} groups"]
    parts += [f"{len(whole)} of them stay whole"] if whole else []
    parts += [f"{len(empty)} lose all"] if empty else []
    return "; ".join(parts) + "."


def draw_plots(sweep: Sweep, this: tuple[float, float | None, float] | None) -> list[Plot]:
    """Plot the metric against the share of MACs and, if every point was timed, against the share of latency.

    this: (share of MACs, share of latency, metric) of the model that the report describes.
    """
    label = f"MACs, share of the original ({sweep.workload.shape})"
    mine = None if this is None else (this[0], this[2])
    plots = [_plot(sweep, lambda point: point.macs_ratio, "MACs", label, mine)]
    speed = sweep.baseline.latency
    if speed is not None and sweep.points and all(point.latency_ratio is not None for point in sweep.points):
        label = f"latency, share of the original (batch {speed.batch_size}, {speed.shape})"
        mine = None if this is None or this[1] is None else (this[1], this[2])
        plots.append(_plot(sweep, lambda point: point.latency_ratio or 0.0, "latency", label, mine))
    return plots


def _plot(
    sweep: Sweep, place: Callable[[SweepPoint], float], cost: str, x_label: str, this: tuple[float, float] | None
) -> Plot:
    original = sweep.baseline.value
    levels = [("original", original)]
    if isinstance(most := sweep.options.get("max_drop"), (int, float)):
        levels.append(("allowed", sweep.limit(most)))
    heights = [value for _, value in levels] + ([this[1]] if this else [])
    heights += [p.value + sign * (p.standard_error or 0.0) for p in sweep.points for sign in (-1, 1)]
    y_ticks = ticks(min(heights), max(heights))
    x_ticks = ticks(0.0, max([1.0, *map(place, sweep.points)] + ([this[0]] if this else [])))

    def x_of(value: float) -> float:
        return round(LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM), 1)

    series = []
    recipes = dict.fromkeys(point.recipe for point in sweep.points)
    for number, name in enumerate(recipes):
        aside = round((number - (len(recipes) - 1) / 2) * ASIDE, 1)  # or error bars at one budget would hide each other
        marks = []
        for point in sorted((p for p in sweep.points if p.recipe == name), key=place):
            error, is_chosen = point.standard_error, sweep.chosen is not None and sweep.points[sweep.chosen] is point
            marks.append(
                Mark(
                    round(x_of(place(point)) + aside, 1),
                    y_of(point.value),
                    None if error is None else y_of(point.value - error),
                    None if error is None else y_of(point.value + error),
                    f"{name} at {place(point):.3f}: {with_error(point.value, error)}{' (chosen)' if is_chosen else ''}",
                    is_chosen,
                )
            )
        path = " ".join(f"{'L' if n else 'M'}{mark.x} {mark.y}" for n, mark in enumerate(marks))
        series.append(Series(name, number % STYLES, path, tuple(marks)))
    best = max if sweep.higher_is_better else min
    summary = f"{len(sweep.points)} models. The original has {original:.4f}."
    if sweep.points:
        point = best(sweep.points, key=lambda p: p.value)
        summary += f" The best of them has {point.value:.4f}: {point.recipe} at {place(point):.3f}."
    if this is not None:
        summary += f" This report's model has {this[1]:.4f} at {this[0]:.3f}."
    return Plot(
        title=f"{sweep.metric} over {cost}",
        summary=summary,
        x_label=x_label,
        y_label=sweep.metric,
        x_ticks=tuple((x_of(value), f"{value:g}") for value in x_ticks),
        y_ticks=tuple((y_of(value), f"{value:g}") for value in y_ticks),
        lines=tuple((name, y_of(value), f"{name} {value:.4f}") for name, value in levels),
        series=tuple(series),
        this=None if this is None else Mark(x_of(this[0]), y_of(this[1]), None, None, "this report's model", False),
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Evenly spaced round numbers that enclose `low` and `high`."""
    spread = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(spread / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if spread / (size * factor) <= most)
    slack = 1e-9 * step
    first, last = math.floor((low + slack) / step), math.ceil((high - slack) / step)
    # The division rounds: far from zero it can land on the wrong side of the number it divides.
    while round(first * step, 12) > low + slack:
        first -= 1
    while round(last * step, 12) < high - slack:
        last += 1
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
