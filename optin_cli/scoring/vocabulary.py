"""The output term of the sketch for distributions over vocabularies: its gradient at the last hidden states.

With a class y_t drawn from each token's softened distribution p_t, and a sign s_t for each token and probe,

    S = sqrt(1 / 2T) sum_t s_t (e_y - p)_t . logits_t,   E[(dS)^2] = sum_t d_t^T (diag(p) - p p^T) d_t / 2T

for any change d of the logits, as the other outputs have it (`sketch.fisher_factor`). The gradient of S at the hidden
state of token t is s_t times one vector, which all probes share: one pass through the head and one back, of as many
tokens as `readout.MOST` allows. What is kept has the shape of the hidden states.
"""

import torch

from optin_cli.data.batch import Batch, keyed_generator
from optin_cli.model.readout import Readout

STRETCH = 256
"""Classes whose probabilities are summed to find in which of them a draw falls."""


def vocabulary_pull(readout: Readout, batch: Batch, temperature: float, seed: int) -> torch.Tensor:
    """Gradient of S at every hidden state, less the sign: (rows, tokens, width), zero at padding."""
    pull = torch.zeros_like(readout.hidden, dtype=torch.float32, requires_grad=False)
    for row, (key, real) in enumerate(zip(batch.keys, batch.mask_for(readout.hidden), strict=True)):
        places = real.nonzero().flatten()
        # As many draws as tokens, so that neither padding nor the parts change what a token draws.
        draws = torch.rand(len(places), generator=keyed_generator(seed, key, "classes")).to(pull)
        for chosen, drawn in zip(*(torch.split(each, readout.step) for each in (places, draws)), strict=True):
            hidden = readout.hidden[row, chosen].detach().requires_grad_()
            logits = readout.logits(hidden)
            softened = logits.detach().float()
            factor = drawn_factor(softened if temperature == 1 else softened / temperature, drawn)
            (gradient,) = torch.autograd.grad(logits, hidden, factor.to(logits))
            pull[row, chosen] = gradient.float() * (2 * len(places)) ** -0.5
    return pull


def drawn_factor(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """e_y - p (tokens, classes), with y the class of softmax p in which a uniform draw (tokens,) falls."""
    p = torch.softmax(logits, dim=-1)
    drawn = drawn_classes(p, draws)[:, None]
    return p.neg_().scatter_add_(1, drawn, torch.ones_like(drawn, dtype=p.dtype))


def drawn_classes(p: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The classes of distributions p (tokens, classes) in which uniform draws (tokens,) fall: (tokens,).

    The stretch of classes is found first, then the class within it, so that few numbers need running sums.
    """
    classes, left = p.shape[-1], draws.to(p)[:, None]
    whole = classes // STRETCH * STRETCH
    sums = p[:, :whole].reshape(len(p), -1, STRETCH).sum(dim=-1)
    sums = torch.cat([sums, p[:, whole:].sum(dim=-1, keepdim=True)], dim=-1).cumsum(dim=-1)
    # Sums may round to less than a draw.
    stretch = torch.searchsorted(sums, left, right=True).clamp(max=(classes - 1) // STRETCH)
    left = left - torch.where(stretch > 0, sums.gather(1, (stretch - 1).clamp(min=0)), 0.0)
    places = stretch * STRETCH + torch.arange(STRETCH, device=p.device)
    near = torch.where(places < classes, p.gather(1, places.clamp(max=classes - 1)), 0.0).cumsum(dim=-1)
    within = torch.searchsorted(near, left, right=True).clamp(max=STRETCH - 1)
    drawn: torch.Tensor = (stretch * STRETCH + within).clamp(max=classes - 1)[:, 0]
    return drawn


def token_signs(key: str, seed: int, probe: int, tokens: int) -> torch.Tensor:
    """Rademacher signs of a sample's tokens, (tokens,), float32."""
    drawn = torch.randint(0, 2, (tokens,), generator=keyed_generator(seed, key, probe, "tokens"))
    return drawn * 2.0 - 1.0
