"""Differences between two scores files: rank correlation, costs, options and inputs."""

import numpy as np

from optin_cli.artifacts.base import Vector32
from optin_cli.artifacts.scores import Scores
from optin_cli.diffing.tables import Difference, Row, Section, Side, contents, diff_bodies, diff_heads, difference


def diff_scores(a: Side, b: Side) -> Difference:
    """Compare rankings by kind of unit and by group, then costs, options and inputs."""
    mine, theirs = contents(Scores, a, b)
    shared = [name for name, vector in mine.importance.items() if _units(theirs, name) == len(vector)]
    kinds: Section = {}
    for kind in dict.fromkeys(mine.header.groups[name].kind for name in shared):
        names = [name for name in shared if mine.header.groups[name].kind == kind]
        here, there = (np.concatenate([scores.importance[name] for name in names]) for scores in (mine, theirs))
        if not np.array_equal(here, there):
            kinds[kind] = _row(here, there)
    groups = {
        name: _row(mine.importance[name], theirs.importance[name])
        for name in shared
        if not np.array_equal(mine.importance[name], theirs.importance[name])
    }
    only: Section = {
        name: {"units a": _units(mine, name), "units b": _units(theirs, name)}
        for name in dict.fromkeys([*mine.importance, *theirs.importance])
        if name not in shared
    }
    rest = diff_bodies(mine.header, theirs.header)
    summary: Row = {"groups in both": len(shared), "groups whose scores differ": len(groups)}
    sections = {"importance by kind": kinds, "importance by group": groups, "groups that do not match": only}
    return difference(a, b, summary, {**sections, "record": rest, **diff_heads(mine.header, theirs.header)})


def _units(scores: Scores, name: str) -> int | None:
    return scores.header.groups[name].units if name in scores.header.groups else None


def _row(a: Vector32, b: Vector32) -> Row:
    return {
        "units": len(a),
        "spearman": spearman(a, b),
        "largest difference": float(np.abs(a.astype(np.float64) - b).max()),
        "sum b / sum a": float(b.sum(dtype=np.float64) / total) if (total := a.sum(dtype=np.float64)) else None,
    }


def spearman(a: Vector32, b: Vector32) -> float | None:
    """Spearman rank correlation with ties sharing their mean rank; None if either side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(vector) for vector in (a, b)]
    if any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
