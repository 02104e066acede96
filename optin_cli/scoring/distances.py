"""Distances between trajectories, as pure tensor functions.

Equations of OPTIN (ICLR 2024, Algorithm 1): manifold distance between the token Gram matrices of block
outputs, and a distillation distance between the final outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

SHORTEST = 1e-12
"""Least length by which a token is divided, as of `torch.nn.functional.normalize`."""


def normalized_tokens(features: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """L2-normalise every token of (rows, tokens, width) and zero the padding; the mask is true where one is real."""
    return F.normalize(features, dim=-1) * token_mask.unsqueeze(-1).to(features.dtype)


class _GramProjection(torch.autograd.Function):
    """`gram_projection`, whose gradient has rank two before the normalisation: no matrix of its size is built for it.

    With a, b the signs, h a token of length n, Z = h / n its unit vector, l = sum a Z and r = sum b Z, the gradient of
    l . r at h is (D - Z (Z . D)) / n, where D = a r + b l.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        """Args: as of `gram_projection`; signs are zero at padding."""
        lengths = features.norm(dim=-1).clamp_(min=SHORTEST)
        scaled = signs / lengths
        sides = torch.einsum("sbt,btc->bsc", scaled, features)
        ctx.save_for_backward(features, scaled, sides, lengths)
        return (sides[:, 0] * sides[:, 1]).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient at features."""
        features, scaled, sides, lengths = ctx.saved_tensors
        swapped = sides.flip(1) * slope[:, None, None]
        along = torch.einsum("btc,bsc->sbt", features, swapped)
        shrink = (scaled * along).sum(dim=0) / lengths.square()
        change = torch.einsum("sbt,bsc->btc", scaled, swapped)
        return change.addcmul_(features, shrink[..., None], value=-1), None


def gram_projection(features: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """a^T G b of the Gram matrix G of every row's tokens, normalised to length 1: (rows,).

    Args:
        features: (rows, tokens, width).
        signs: a and b, (2, rows, tokens), zero at padding.
    """
    found: torch.Tensor = _GramProjection.apply(features, signs.to(features.dtype))
    return found


def manifold_distance(features: torch.Tensor, reference: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """Squared Frobenius distance of the token Gram matrices over T squared, per row: (rows,).

    Both are (rows, tokens, width), unnormalised. T is the sum of the mask (rows, tokens) per row. Where there are more
    tokens than columns, products of columns take the place of those of tokens, which are larger: with A = B + D,

        ||A A^T - B B^T||^2 = ||D^T D||^2 + 4 <D^T D, D^T B> + 2 <D^T D, B^T B> + 2 tr(D^T B D^T B)
    """
    mine, theirs = normalized_tokens(features, token_mask), normalized_tokens(reference, token_mask)
    tokens = token_mask.sum(dim=1).to(features.dtype)
    if mine.shape != theirs.shape or mine.shape[1] <= mine.shape[2]:
        difference = mine @ mine.transpose(1, 2) - theirs @ theirs.transpose(1, 2)
        return difference.square().sum(dim=(1, 2)) / tokens.square()
    wide = theirs.double()
    change = mine.double() - wide
    own, mixed, other = change.mT @ change, change.mT @ wide, wide.mT @ wide
    each = own * (own + 4 * mixed + 2 * other) + 2 * mixed * mixed.mT
    return each.sum(dim=(1, 2)).clamp(min=0.0).to(features.dtype) / tokens.square()


def output_distance(
    output: torch.Tensor, reference: torch.Tensor, kind: str, temperature: float, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Distance of outputs from a reference, per row: (rows,).

    "categorical": temperature squared times KL(reference || output) of the softened distributions over the last
    axis; "bernoulli": the same of independent binary distributions, averaged over them; "real": mean squared
    error, where the temperature has no meaning. Axes between rows and the last are averaged, over real tokens
    only when `token_mask` (rows, tokens) is given. Divergences are taken in double precision: in single, those
    of unimportant units drown in rounding and can come out negative.
    """
    if kind != "real":
        output, reference = output.double(), reference.double()
    if kind == "categorical":
        p = F.log_softmax(reference / temperature, dim=-1)
        q = F.log_softmax(output / temperature, dim=-1)
        # A class masked to -inf in both contributes nothing; 0 * (-inf + inf) would be NaN.
        each = torch.where(p.isinf(), 0.0, p.exp() * (p - q)).sum(dim=-1).clamp(min=0.0) * temperature**2
    elif kind == "bernoulli":
        p = torch.sigmoid(reference / temperature)
        on = F.logsigmoid(reference / temperature) - F.logsigmoid(output / temperature)
        off = F.logsigmoid(-reference / temperature) - F.logsigmoid(-output / temperature)
        each = (p * on + (1 - p) * off).clamp(min=0.0).mean(dim=-1) * temperature**2
    else:
        each = (output - reference).square().mean(dim=-1)
    return mean_over_tokens(each, token_mask)


def mean_over_tokens(values: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """Average everything after the first axis: (rows, ...) -> (rows,), over real tokens only if masked."""
    if values.dim() == 1:
        return values
    if token_mask is not None:
        weights = token_mask.to(values.dtype)
        return (values * weights).sum(dim=1) / weights.sum(dim=1)
    return values.flatten(1).mean(dim=1)
