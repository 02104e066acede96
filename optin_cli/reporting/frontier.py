"""The frontier of a sweep as one SVG file: the charts of a report, with a title and a legend."""

import re
from dataclasses import dataclass

from optin_cli.artifacts.sweep import Sweep
from optin_cli.reporting.charts import WIDTH, Plot, draw_plots
from optin_cli.reporting.templates import environment

MARGIN, ENTRY, ROW = 20.0, 190.0, 20.0
"""Pixels around the picture, for an entry of the legend, and between two rows of text."""


@dataclass(frozen=True)
class Entry:
    """One line of the legend. style: of a recipe. level: kind of a horizontal line. Neither: the chosen point."""

    x: float
    y: float
    label: str
    style: int | None = None
    level: str | None = None


def draw_frontier(sweep: Sweep) -> str:
    """Draw the metric against the shares of MACs and, if every point was timed, of latency, as SVG."""
    plots = draw_plots(sweep, None)
    speed = sweep.baseline.latency
    notes = ["Bars are standard errors."] if any(point.standard_error is not None for point in sweep.points) else []
    if speed is not None and len(plots) > 1:
        notes.append(f"The original takes {speed.median_ms:.3g} ms on {speed.timed_on}.")
    width = 2 * MARGIN + max(2, len(plots)) * WIDTH
    begin = 26 + ROW * len(notes)
    legend = _legend(sweep, plots[0], begin, columns=int((width - 2 * MARGIN) // ENTRY))
    top = max([entry.y for entry in legend], default=begin) + 1.5 * ROW
    drawn: str = (
        environment()
        .get_template("frontier.svg")
        .render(
            title=f"{sweep.inputs['checkpoint'].name} on {sweep.task} ({sweep.split}, {sweep.samples:,} samples)",
            notes=notes,
            legend=legend,
            plots=plots,
            width=width,
            height=top + plots[0].height + MARGIN,
            margin=MARGIN,
            top=top,
        )
    )
    return with_plain_colours(drawn)


def with_plain_colours(svg: str) -> str:
    """The picture in its light colours, for the viewers and converters that know no variables of CSS."""
    light = svg[svg.index(":root {") : svg.index("@media")]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", light))
    plain = re.sub(r"^:root \{.*?^\}\n@media.*?^\}\n", "", svg, count=1, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], plain)


def _legend(sweep: Sweep, plot: Plot, begin: float, *, columns: int) -> list[Entry]:
    named: list[tuple[str, int | None, str | None]] = [(series.name, series.style, None) for series in plot.series]
    named += [(label, None, kind) for kind, _, label in plot.lines]
    named += [] if sweep.chosen is None else [("chosen", None, None)]
    return [
        Entry(MARGIN + ENTRY * (number % columns), begin + ROW * (number // columns), *entry)
        for number, entry in enumerate(named)
    ]
