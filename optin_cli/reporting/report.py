"""Write one self-contained HTML page about a pruned model. Equal artifacts give equal bytes; torch is not imported."""

import base64
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optin_cli.artifacts.evaluation import with_error
from optin_cli.artifacts.sweep import Sweep
from optin_cli.files import write_bytes
from optin_cli.progress import SILENT, Progress
from optin_cli.reporting.charts import draw_heat_map, draw_plots, is_drawn_by_unit
from optin_cli.reporting.evidence import gather
from optin_cli.reporting.facts import Report, make_report
from optin_cli.reporting.pictures import find_pictures
from optin_cli.reporting.templates import environment
from optin_cli.version import __version__

PAGE = "page.html"


def report(
    folder: str | Path | None,
    output: str | Path,
    *,
    files: Mapping[str, Sequence[str | Path]] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write one self-contained HTML page of a pruned model ("-": to standard output), and return what it says.

    Args:
        folder: one that `prune` or `sweep` wrote, or that holds artifacts; what lies beside a pruned or sweep folder
            is found by its hash.
        files: further artifacts by kind (mask, scores, profile, eval, sweep), which must fit.
        progress: notes say what lies in the folder but does not fit.

    Raises:
        OptinError: artifacts that do not belong together, nothing to report, or an output that exists.
    """
    evidence = gather(None if folder is None else Path(folder), files or {}, progress=progress)
    made = make_report(evidence)
    page = render(made, find_pictures(evidence, progress))
    write_bytes(output, page.encode("utf-8", "replace"), force=force)
    return made


def render(report: Report, pictures: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """Render the page's HTML. pictures: PNG files by sha256, of those that the evaluations name."""
    kinds = {
        kind: [g for g in report.groups if g.kind == kind] for kind in dict.fromkeys(g.kind for g in report.groups)
    }
    drawn = [(kind, own, draw_heat_map(kind, own) if is_drawn_by_unit(own) else None) for kind, own in kinds.items()]
    sweeps = [(name, sweep, draw_plots(sweep, _this(report, sweep))) for name, sweep in report.sweeps]
    page: str = _template().render(
        report=report,
        pictures={sha256: base64.b64encode(content).decode() for sha256, content in pictures.items()},
        headline=_headline(report),
        kinds=drawn,
        sweeps=sweeps,
        version=__version__,
        most_macs=max([layer.before for layer in report.layers[:-1]], default=1) or 1,
        options=[(name, list(rows)) for name, rows in itertools.groupby(report.options, key=lambda row: row[0])],
    )
    return page


@functools.cache
def _template() -> Any:
    pages = environment().overlay()
    pages.filters = {**pages.filters, **{f.__name__: f for f in (amount, figure, signed, kind_name, share_of)}}
    return pages.get_template(PAGE)


def amount(value: float) -> str:
    """Format a count with thousands separators."""
    return f"{value:,.0f}"


def figure(value: float) -> str:
    """Format a measured number: as an integer if large, else to four significant figures."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def signed(value: float) -> str:
    """Format a difference with its sign, to four decimals."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def kind_name(kind: str) -> str:
    """Plural name of a kind of unit, capitalised."""
    return f"{kind[:1].upper()}{kind[1:]}s"


def share_of(part: float, whole: float) -> str:
    """Percentage for the length of a bar."""
    return f"{100 * part / whole if whole else 0:.2f}"


def _headline(report: Report) -> str:
    """Summarise the measurements in one sentence."""
    shares, metrics = [], []
    for quantity in report.quantities:
        if quantity.is_metric and quantity.after is not None:
            before = "" if quantity.before is None else f" (before: {quantity.before:.4f})"
            metrics.append(f"{quantity.name} {with_error(quantity.after, quantity.spread)}{before}")
        elif quantity.ratio is not None:
            what = quantity.name.removesuffix(" (ms)")
            shares.append(f"{what if what == 'MACs' else what.lower()} \N{MULTIPLICATION SIGN} {quantity.ratio:.3f}")
    return "; ".join(part for part in (", ".join(shares), *metrics) if part)


def _this(report: Report, sweep: Sweep) -> tuple[float, float | None, float] | None:
    """Coordinates of this report's model in a sweep measured on the same samples by the same metric."""
    for _, evaluation in report.evaluations:
        other = evaluation.against
        data = evaluation.inputs.get("data")
        same = data is not None and data.is_same(sweep.inputs.get("data")) and evaluation.samples == sweep.samples
        if report.is_cut and other is not None and evaluation.metric is not None and same:
            latency, theirs = evaluation.latency, sweep.baseline.latency
            alike = latency is not None and theirs is not None and _setting(latency) == _setting(theirs)
            if evaluation.metric.name == sweep.metric:
                return other.macs_ratio, other.latency_ratio if alike else None, evaluation.metric.value
    return None


def _setting(latency: Any) -> tuple[Any, ...]:
    return latency.batch_size, latency.seq_len, latency.image, latency.device, latency.threads
