"""Sketched scores: their expectation, their draws, and the second moment of the random factor."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.estimators import assert_close, sketch
from helpers.models import (
    HEADS,
    build,
    clone,
    make_batch,
    make_inputs,
    structure_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.data.batch import Batch
from optin_cli.model.forward import observe
from optin_cli.model.masking import gated
from optin_cli.scoring.exact import trajectory_distance
from optin_cli.scoring.sketch import Objective, fisher_factor


def second_order(head, model, structure, inputs, objective, eps=1e-3):
    """Half of importance(1 + eps) + importance(1 - eps), over eps^2, in double precision: (units,) by group name."""
    wide = clone(model).double()
    batch = Batch(inputs, None, tuple(map(str, range(len(inputs["input_ids"])))))
    with torch.no_grad():
        reference = observe(wide, structure, batch)
        found = {}
        for group in structure.groups:
            step = eps * torch.eye(group.units, dtype=torch.float64)
            gates = torch.cat([1 + step, 1 - step])
            with gated(wide, {group: gates}):
                mine = observe(wide, structure, batch.repeated(2 * group.units))
            distance = trajectory_distance(mine, reference, structure, batch, objective, 0).double() / eps**2
            found[group.name] = distance.reshape(2, -1).mean(dim=0)
    return found


@pytest.mark.parametrize(
    ("head", "objective"),
    [
        ("classes", Objective(1.0, 0.0, 1.0)),
        *[(head, Objective(0.0, 0.5, 2.0)) for head in HEADS],
        ("classes", Objective(1.0, 1.0, 1.0)),
        ("answers", Objective(1.0, 1.0, 1.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.manifold:g}-{value.output:g}",
)
def test_sketch_is_the_second_order_importance_in_expectation(head, objective):
    model = build("bert", head, num_hidden_layers=2, intermediate_size=12)
    structure = structure_of(model, head)
    inputs, copies, probes = make_inputs(rows=2, tokens=7, padding=3), 500, 8
    keys = tuple(f"{row}/{copy}" for row in range(2) for copy in range(copies))
    many = Batch({name: t.repeat_interleave(copies, dim=0) for name, t in inputs.items()}, None, keys)
    estimates = sketch(model, structure, many, objective, probes=probes)
    for row in range(2):
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        for name, expected in second_order(head, model, structure, one, objective).items():
            values = estimates[name].reshape(2, copies, -1)[row]
            error = values.std(dim=0) / math.sqrt(copies)
            assert (
                (values.mean(dim=0) - expected).abs() <= 4.5 * error + 1e-3 * expected + 1e-5 * expected.max()
            ).all()
            assert values.mean(dim=0).sum() == pytest.approx(float(expected.sum()), rel=0.2)


def test_sketch_draws_depend_on_seed_probe_and_key():
    model = build("bert")
    structure, batch = structure_of(model), make_batch(rows=1, padding=0)
    first = sketch(model, structure, batch, probes=1)
    assert_close(sketch(model, structure, batch, probes=1), first, 0)
    other = Batch(batch.inputs, None, ("another",))
    for changed in (sketch(model, structure, batch, probes=1, seed=1), sketch(model, structure, other, probes=1)):
        assert not torch.allclose(changed["encoder.0.head"], first["encoder.0.head"])
    assert all((values >= 0).all() for values in first.values())


SEEDS = st.integers(0, 10_000)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(0, 2))
def test_fisher_factor_has_the_fisher_matrix_as_second_moment(seed, classes, impossible):
    p = torch.softmax(F.pad(draw(seed, classes), (0, impossible), value=-torch.inf), dim=-1)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=p.numel())), dtype=torch.float64)
    factors = fisher_factor(p.expand_as(signs), signs)
    torch.testing.assert_close(factors.T @ factors / len(signs), p.diag() - torch.outer(p, p))
