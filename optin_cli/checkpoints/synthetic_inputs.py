"""A checkpoint in; inputs of its model that no data is needed for out: to count by, to time with, to compare by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optin_cli.artifacts.base import Workload
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.text.tokenize import reserved_positions
from optin_cli.errors import UsageError

Inputs = dict[str, torch.Tensor]


DEFAULT_SEQ_LEN = 128


PROBE_ROWS, PROBE_TOKENS = 4, 24


def workload_length(checkpoint: Checkpoint, asked: int | None) -> int | None:
    """Sequence length that costs are stated for: `asked`, or 128, within what the model's positions hold.

    None for image models, whose inputs have one size.
    """
    if checkpoint.image is not None:
        if asked is None:
            return None
        raise UsageError(
            f"{checkpoint.name} takes images of {workload_of(checkpoint, None).shape}, which have no sequence length.",
            hint="Leave out --seq-len.",
        )
    most = most_tokens(checkpoint) or DEFAULT_SEQ_LEN
    if asked is None:
        return min(DEFAULT_SEQ_LEN, most) if checkpoint.recorded is None else checkpoint.recorded.workload.seq_len
    if not 1 <= asked <= most:
        raise UsageError(f"The sequence length {asked} is not within 1 to {most}, what {checkpoint.name} holds.")
    return asked


def most_tokens(checkpoint: Checkpoint) -> int | None:
    """Most tokens of a sequence that the model's positions hold; None for images, and where nothing limits them."""
    rows = getattr(checkpoint.config, "max_position_embeddings", None) if checkpoint.image is None else None
    return int(rows) - reserved_positions(checkpoint.model, int(rows)) if rows else None


def workload_of(checkpoint: Checkpoint, seq_len: int | None, batch_size: int = 1) -> Workload:
    """The shape that costs are stated for: `seq_len` tokens of text, or an image of the checkpoint's size."""
    if checkpoint.image is None:
        return Workload(batch_size=batch_size, seq_len=seq_len)
    return Workload(batch_size=batch_size, image=checkpoint.image.shape)


def example_inputs(checkpoint: Checkpoint, workload: Workload) -> Inputs:
    """Inputs of a workload's shape, all alike and without padding, on the model's device."""
    if checkpoint.image is not None:
        shape = (workload.batch_size, *(workload.image or checkpoint.image.shape))
        return {checkpoint.image.input_name: torch.zeros(shape, device=checkpoint.device)}
    pad = checkpoint.config.pad_token_id
    ids = torch.full((workload.batch_size, workload.seq_len or 1), 1 if pad == 0 else 0, device=checkpoint.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def random_inputs(checkpoints: Sequence[Checkpoint], workload: Workload, *, seed: int = 0) -> list[Inputs]:
    """The same random inputs of a workload's shape for every checkpoint, on the first one's device."""
    generator = torch.Generator().manual_seed(seed)
    first, device = checkpoints[0], checkpoints[0].device
    if first.image is not None:
        shape = (workload.batch_size, *(workload.image or first.image.shape))
        pixels = torch.randn(shape, generator=generator).to(device)
        return [{c.image.input_name: pixels} for c in checkpoints if c.image is not None]
    vocabulary = min(int(c.config.vocab_size) for c in checkpoints)
    ids = torch.randint(vocabulary, (workload.batch_size, workload.seq_len or 1), generator=generator).to(device)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for _ in checkpoints]


def probe_inputs(
    checkpoint: Checkpoint, max_length: int | None, *, rows: int = PROBE_ROWS, tokens: int = PROBE_TOKENS
) -> Inputs:
    """Fixed random inputs on the CPU: images, or token ids whose later rows are padded by ever more positions.

    Args:
        max_length: most tokens that a row of text may have.
        rows: samples. tokens: of a row of text.
    """
    generator = torch.Generator().manual_seed(0)
    if checkpoint.image is not None:
        pixels = torch.randn((rows, *checkpoint.image.shape), generator=generator)
        return {checkpoint.image.input_name: pixels}
    vocabulary, pad = int(checkpoint.config.vocab_size), checkpoint.config.pad_token_id
    tokens = min(tokens, max_length or tokens)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, tokens - row * tokens // (2 * rows) :] = 0
    return {"input_ids": torch.where(mask.bool(), ids, pad or 0), "attention_mask": mask}
