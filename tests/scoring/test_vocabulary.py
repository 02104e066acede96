"""The output term of next tokens: its second moment is the Fisher form, and parts and batches do not change it."""

import pytest
import torch
from helpers.models import build, make_batch, pick, structure_of

from optin_cli.model import readout
from optin_cli.model.readout import read_out
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring.exact import exact_batch
from optin_cli.scoring.sketch import Objective, sketch_batch
from optin_cli.scoring.vocabulary import STRETCH, drawn_classes, drawn_factor, token_signs, vocabulary_pull

OUTPUT = Objective.of(ScoreOptions(criterion="output", temperature=1.0))


def test_second_moment_is_the_fisher_matrix():
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    draws = torch.linspace(0, 1, 20001)[:-1]
    factors = drawn_factor(logits.expand(len(draws), -1), draws)
    p = torch.softmax(logits[0], dim=-1)
    torch.testing.assert_close(factors.T @ factors / len(draws), torch.diag(p) - torch.outer(p, p), atol=1e-3, rtol=0)
    torch.testing.assert_close(factors.sum(dim=-1), torch.zeros(len(draws)), atol=1e-5, rtol=0)


def test_a_draw_beyond_the_rounded_sum_takes_the_last_class():
    assert drawn_factor(torch.zeros(1, 3), torch.tensor([1.0]))[0, 2] > 0


def test_signs_are_those_of_the_sample_and_probe():
    first = token_signs("a.0", 0, 0, 64)
    assert set(first.tolist()) == {-1.0, 1.0}
    assert first.equal(token_signs("a.0", 0, 0, 64)) and not first.equal(token_signs("a.0", 0, 1, 64))


def test_neither_parts_nor_batches_nor_padding_change_the_pull(monkeypatch):
    model, batch = build("llama", "next"), make_batch(3)
    structure = structure_of(model, "next")
    whole = vocabulary_pull(read_out(model, structure, batch), batch, 2.0, 5)
    assert float(whole[-1, 7:].abs().sum()) == 0.0, "padding"
    monkeypatch.setattr(readout, "MOST", 99 * 4)
    torch.testing.assert_close(vocabulary_pull(read_out(model, structure, batch), batch, 2.0, 5), whole)
    one = pick(batch, [2])
    alone = vocabulary_pull(read_out(model, structure, one), one, 2.0, 5)
    torch.testing.assert_close(alone[0], whole[2, :7])


@pytest.mark.parametrize("objective", [OUTPUT, Objective(1.0, 10.0, 4.0)])
def test_sketch_estimates_small_removals(objective):
    """Damped units instead of removed ones, so that the quadratic form is all there is."""
    from optin_cli.model.forward import observe
    from optin_cli.model.masking import gated
    from optin_cli.scoring.exact import trajectory_distance

    model, batch = build("llama", "next"), make_batch(4, seed=1)
    structure = structure_of(model, "next")
    structure = structure.with_groups(structure.groups[:2])
    runs = [sketch_batch(model, structure, batch, objective, probes=64, seed=seed) for seed in range(8)]
    small = 0.02
    with torch.no_grad():
        reference = observe(model, structure, batch)
        for group in structure.groups:
            gates = (1 - small * torch.eye(group.units)).repeat_interleave(batch.size, dim=0)
            with gated(model, {group: gates}):
                mine = observe(model, structure, batch.repeated(group.units))
            exact = trajectory_distance(mine, reference, structure, batch, objective, 0).reshape(group.units, -1)
            found = torch.stack([run[group.name] for run in runs]).mean(dim=(0, 1))
            expected = exact.mean(dim=1) / small**2
            assert float((found / expected - 1).abs().median()) < 0.15


def test_exact_removal_still_sees_whole_logits():
    model, batch = build("llama", "next"), make_batch()
    structure = structure_of(model, "next")
    found = exact_batch(model, structure.with_groups(structure.groups[:1]), batch, OUTPUT, rows=8)
    assert all(bool((values > 0).all()) for values in found.values())


@pytest.mark.parametrize("classes", [5, STRETCH, 2 * STRETCH, 3 * STRETCH + 7])
def test_a_draw_falls_in_the_class_that_the_running_sum_reaches_with_it(classes):
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(3 * torch.randn(400, classes, generator=generator, dtype=torch.float64), dim=-1)
    draws = torch.rand(400, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(p.cumsum(dim=-1), draws[:, None], right=True)[:, 0]
    assert torch.equal(drawn_classes(p, draws), expected)
    assert torch.equal(drawn_classes(p, torch.ones(400)), torch.full((400,), classes - 1))
