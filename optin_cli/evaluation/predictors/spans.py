"""Find the best answer span from the logits of its first and last token. Pure tensor functions."""

import torch
import torch.nn.functional as F


def best_spans(
    start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The span of highest start + end logit among all of 1 to `longest` tokens that begin and end where allowed.

    Args:
        start, end: (rows, tokens).
        allowed: (rows, tokens) bool.

    Returns:
        (scores, first, last), each (rows,), `last` inclusive; the score is -inf where nothing is allowed.
    """
    tokens = start.shape[1]
    starts, ends = (logits.masked_fill(~allowed, -torch.inf) for logits in (start, end))
    lengths = min(longest, tokens)
    scores = torch.stack(
        [F.pad(starts[:, : tokens - d] + ends[:, d:], (0, d), value=-torch.inf) for d in range(lengths)], dim=-1
    )
    best, place = scores.flatten(1).max(dim=1)
    first = place // lengths
    return best, first, first + place % lengths
