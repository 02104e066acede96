"""Laws of the distances between trajectories."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.scoring.distances import (
    gram_projection,
    manifold_distance,
    mean_over_tokens,
    normalized_tokens,
    output_distance,
)

KINDS = ("categorical", "bernoulli", "real")

SEEDS = st.integers(0, 10_000)


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mask_of(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_manifold_distance_is_zero_symmetric_and_blind_to_rotation_and_padding(seed):
    a, b, mask = draw(seed, 3, 5, 4), draw(seed + 1, 3, 5, 4), mask_of(5, 3, 1)
    distance = manifold_distance(a, b, mask)
    assert manifold_distance(a, a, mask).tolist() == [0, 0, 0]
    assert (distance[:2] > 0).all()
    torch.testing.assert_close(distance, manifold_distance(b, a, mask))
    torch.testing.assert_close(distance, manifold_distance(3 * a, b, mask))  # scale of a token is no direction
    rotation = torch.linalg.qr(draw(seed + 2, 4, 4)).Q
    torch.testing.assert_close(distance, manifold_distance(a @ rotation, b, mask))
    junk = torch.where(mask[..., None], a, draw(seed + 3, 3, 5, 4))
    torch.testing.assert_close(distance, manifold_distance(junk, b, mask))
    for row, length in enumerate((5, 3, 1)):
        alone = manifold_distance(a[row : row + 1, :length], b[row : row + 1, :length], mask_of(length))
        torch.testing.assert_close(alone, distance[row : row + 1])


def test_manifold_distance_by_hand():
    # Two orthogonal tokens against two equal ones: the Gram matrices differ by 1 in the two corners.
    a, b = torch.eye(2).unsqueeze(0), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert manifold_distance(a, b, mask_of(2)).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("tokens", [3, 4, 9, 40])
def test_manifold_distance_is_that_of_gram_matrices_whatever_is_larger(tokens):
    a, b = draw(0, 2, tokens, 4), draw(1, 2, tokens, 4)
    mask = mask_of(tokens, tokens - 2)
    for near in (1.0, 1e-3, 1e-6):
        moved = b + near * a
        mine, theirs = (normalized_tokens(x, mask) for x in (moved, b))
        gram = mine @ mine.mT - theirs @ theirs.mT
        expected = gram.square().sum(dim=(1, 2)) / mask.sum(dim=1) ** 2
        torch.testing.assert_close(manifold_distance(moved, b, mask), expected, rtol=1e-6, atol=0)


def test_normalized_tokens_are_unit_vectors_or_zero():
    mask = mask_of(4, 2)
    normal = normalized_tokens(draw(0, 2, 4, 3), mask)
    torch.testing.assert_close(normal.norm(dim=-1), mask.double())
    assert normalized_tokens(torch.zeros(1, 2, 3), mask_of(2)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_output_distance_is_zero_positive_and_row_by_row(kind, temperature, seed):
    a, b = draw(seed, 3, 4), draw(seed + 1, 3, 4)
    distance = output_distance(a, b, kind, temperature)
    assert output_distance(a, a, kind, temperature).abs().max() < 1e-12
    assert (distance > 0).all()
    for row in range(3):
        alone = output_distance(a[row : row + 1], b[row : row + 1], kind, temperature)
        torch.testing.assert_close(alone, distance[row : row + 1])
    # Per token: the mean over the real ones of what each gives by itself.
    tokens, others, mask = draw(seed, 2, 5, 4), draw(seed + 1, 2, 5, 4), mask_of(5, 3)
    each = output_distance(tokens.flatten(0, 1), others.flatten(0, 1), kind, temperature).reshape(2, 5)
    expected = torch.stack([each[0].mean(), each[1, :3].mean()])
    torch.testing.assert_close(output_distance(tokens, others, kind, temperature, mask), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_output_distances_equal_their_definitions(temperature):
    a, b = draw(0, 2, 3), draw(1, 2, 3)
    p, q = (F.softmax(x / temperature, dim=-1) for x in (b, a))
    expected = (p * (p / q).log()).sum(-1) * temperature**2
    torch.testing.assert_close(output_distance(a, b, "categorical", temperature), expected)
    on, off = torch.sigmoid(b / temperature), torch.sigmoid(a / temperature)
    pairs = [torch.stack([x, 1 - x], -1) for x in (on, off)]
    expected = (pairs[0] * (pairs[0] / pairs[1]).log()).sum(-1).mean(-1) * temperature**2
    torch.testing.assert_close(output_distance(a, b, "bernoulli", temperature), expected)
    torch.testing.assert_close(output_distance(a, b, "real", temperature), F.mse_loss(a, b, reduction="none").mean(-1))


def test_high_temperature_tends_to_half_the_spread_of_the_difference():
    a, b = draw(0, 2, 3), draw(1, 2, 3)
    torch.testing.assert_close(
        output_distance(a, b, "categorical", 1e4), 0.5 * (a - b).var(dim=-1, correction=0), rtol=1e-3, atol=0
    )


def test_classes_masked_by_infinity_count_nothing():
    a, b = draw(0, 2, 4), draw(1, 2, 4)
    masked = [F.pad(x, (0, 3), value=-torch.inf) for x in (a, b)]
    whole = output_distance(a, b, "categorical", 2.0)
    torch.testing.assert_close(output_distance(*masked, "categorical", 2.0), whole)


def test_means_are_over_real_tokens():
    values = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    assert mean_over_tokens(values, mask_of(2, 1)).tolist() == [2.0, 5.0]
    assert mean_over_tokens(values, None).tolist() == [2.0, 52.5]
    assert mean_over_tokens(values[0], None).tolist() == [1.0, 3.0]


def test_projections_of_gram_matrices_and_their_gradients_are_those_of_normalised_tokens():
    features = draw(0, 3, 5, 4).double()
    features[2, 1] = 0.0
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    signs = draw(1, 2, 3, 5).double().sign() * mask
    slope = draw(2, 3).double()
    found, expected = features.clone().requires_grad_(), features.clone().requires_grad_()
    mine = gram_projection(found, signs)
    left, right = torch.einsum("sbt,btc->sbc", signs, normalized_tokens(expected, mask))
    theirs = (left * right).sum(dim=-1)
    torch.testing.assert_close(mine, theirs)
    (mine * slope).sum().backward()
    (theirs * slope).sum().backward()
    real = features.norm(dim=-1) > 0
    torch.testing.assert_close(found.grad[real], expected.grad[real])
    assert not found.grad[~mask].any() and found.grad.isfinite().all()
