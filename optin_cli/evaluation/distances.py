"""How far the outputs of two models are apart: agreement and divergence."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F

from optin_cli.architectures.schema import OutputKind
from optin_cli.errors import DataError


def distances(output: torch.Tensor, reference: torch.Tensor, kind: OutputKind) -> tuple[float, float] | None:
    """How far outputs are from a reference: agreement and mean KL divergence (nats); None without any spread.

    output, reference: (N, C) of what `kind` says.
    categorical: agreement is the share of samples (0 to 1) whose largest logit is the same class in both; the
    divergence is KL(reference || model) of the class distributions. bernoulli: the share of samples that have the same
    classes, each of a probability above one half, in both; the divergences of all classes are added. real: Lin's
    concordance of the values (-1 to 1), averaged over outputs; the divergence is that of normal distributions around
    the two values, whose variance is the reference's over the samples, so that predicting its mean everywhere diverges
    by one half.

    Raises DataError: the shapes differ.
    """
    if output.shape != reference.shape:
        raise DataError(
            f"The outputs of the two models differ in shape: {tuple(output.shape)} and {tuple(reference.shape)}.",
            hint="Compare checkpoints of the same task.",
        )
    found = DISTANCES[kind](output.double(), reference.double())
    # Rounding can leave a sum a little below zero, which no divergence is.
    return None if found is None else (found[0], max(found[1], 0.0))


def _categorical_distances(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, float] | None:
    if output.shape[-1] == 1:
        return None
    p, q = (F.log_softmax(x, dim=-1) for x in (reference, output))
    same = (output.argmax(dim=-1) == reference.argmax(dim=-1)).double().mean()
    return float(same), float((p.exp() * (p - q)).sum(-1).mean())


def _bernoulli_distances(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    divergence = torch.zeros_like(reference)
    for sign in (1, -1):
        p, q = F.logsigmoid(sign * reference), F.logsigmoid(sign * output)
        divergence += p.exp() * (p - q)
    same = ((output > 0) == (reference > 0)).all(dim=-1).double().mean()
    return float(same), float(divergence.sum(dim=-1).mean())


def _real_distances(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, float] | None:
    varying = reference.var(dim=0, correction=0) > 0
    mine, theirs = output[:, varying], reference[:, varying]
    if not theirs.numel():
        return None
    spread, error = theirs.var(dim=0, correction=0), (mine - theirs).square().mean(dim=0)
    shift = (mine.mean(dim=0) - theirs.mean(dim=0)).square()
    concordance = 1 - error / (mine.var(dim=0, correction=0) + spread + shift)
    return float(concordance.mean()), float((error / (2 * spread)).mean())


DISTANCES: Mapping[OutputKind, Callable[[torch.Tensor, torch.Tensor], tuple[float, float] | None]] = MappingProxyType(
    {"categorical": _categorical_distances, "bernoulli": _bernoulli_distances, "real": _real_distances}
)


def streamed_distances(logits: Iterable[torch.Tensor], reference: Iterable[torch.Tensor]) -> tuple[float, float]:
    """The same of class distributions that come in parts (n, classes), of which one at a time is held."""
    same = divergence = 0.0
    count = 0
    for mine, theirs in zip(logits, reference, strict=True):
        agreement, kl = distances(mine, theirs, "categorical") or (1.0, 0.0)
        same, divergence, count = same + agreement * len(mine), divergence + kl * len(mine), count + len(mine)
    return same / count, divergence / count
