"""The Python API: one function a stage, each taking and returning what the command line reads and writes."""

from __future__ import annotations

from collections.abc import Sequence

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.artifacts.mask import Layout, Mask
from optin_cli.artifacts.scores import Scores
from optin_cli.files import sha256_of
from optin_cli.search.choose import Algorithm, make_mask
from optin_cli.search.limits import Limits


def search(
    scores: Scores,
    *,
    keep_flops: float | None = None,
    keep_params: float | None = None,
    round_to: int = 1,
    minima: dict[str, int] | None = None,
    protect: Sequence[str] = (),
    layout: Layout = "ragged",
    keep_latency: float | None = None,
    latency_table: LatencyTable | None = None,
    algorithm: Algorithm = "exact",
    name: str = "scores",
) -> Mask:
    """The mask that loses least importance within the budgets (shares of the whole model, 0 to 1).

    Args:
        layout: "uniform" for the same number of units in every layer, which `prune` then writes as a folder that the
            library's own class loads.
        keep_latency: share of the time that `latency_table` measured.
    """
    limits = Limits(keep_flops, keep_params, round_to, minima, tuple(protect), layout, keep_latency, latency_table)
    source = None if latency_table is None else Source(name="latency", sha256=sha256_of(latency_table.dump().encode()))
    return make_mask(scores, scores.source(name), limits, algorithm=algorithm, table_source=source)
