"""Search for the mask that loses least importance within budgets."""

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.scores import Scores
from optin_cli.files import sha256_of
from optin_cli.options.search import Algorithm
from optin_cli.searching.choose import make_mask
from optin_cli.searching.limits import Limits


def search(
    scores: Scores, limits: Limits, *, algorithm: Algorithm = "exact", name: str = "scores", table_name: str = "latency"
) -> Mask:
    """The mask that loses least importance within the limits.

    Args:
        algorithm: "exact" (integer program), or "optin" for the search of the OPTIN paper.
        name, table_name: what the mask calls the scores file and the latency table.

    Raises:
        BudgetError: no mask meets the limits; states the smallest reachable share.
        UsageError: no budget, one out of range, or a group to protect that does not exist.
        ArtifactError: the latency table is of another checkpoint.
    """
    table = limits.latency_table
    source = None if table is None else Source(name=table_name, sha256=sha256_of(table.dump().encode()))
    return make_mask(scores, scores.source(name), limits, algorithm=algorithm, table_source=source)
