"""Estimators with their usual options, and what counts as equal scores."""

import torch

from optin_cli.scoring.exact import exact_batch
from optin_cli.scoring.sketch import Objective, sketch_batch

BOTH = Objective(1.0, 1.0, 1.0)


def exact(model, structure, batch, objective=BOTH, **options):
    return exact_batch(model, structure, batch, objective, **({"rows": 64} | options))


def sketch(model, structure, batch, objective=BOTH, *, probes=3, seed=0):
    return sketch_batch(model, structure, batch, objective, probes=probes, seed=seed)


def assert_close(mine, theirs, tolerance=1e-4):
    """Equal to rounding, relative to the largest importance of the group."""
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(values, theirs[name], rtol=tolerance, atol=tolerance * scale, msg=name)
