"""Texts of which some tokens are masked, for models that fill them in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from optin_cli.data.batch import Batch
from optin_cli.data.text.tokenize import require_room
from optin_cli.errors import CheckpointError


@dataclass(frozen=True)
class Masking:
    """Which tokens are masked: one in `every` at once, never a special one (or an unknown word, which counts as one).

    token: id that takes a masked token's place. special: ids of the tokens that stay.
    """

    token: int
    special: tuple[int, ...]
    every: int

    @classmethod
    def of(cls, tokenizer: Any, every: int) -> "Masking":
        """By the special tokens of a tokenizer (CheckpointError if it has none that masks)."""
        if tokenizer.mask_token_id is None:
            raise CheckpointError(
                "The tokenizer has no mask token, but the model fills in masked tokens.",
                hint="Set mask_token in its tokenizer_config.json, or open the model without its head: --as AutoModel.",
            )
        return cls(int(tokenizer.mask_token_id), tuple(tokenizer.all_special_ids), every)

    def places(self, batch: Batch, phase: torch.Tensor) -> torch.Tensor:
        """Where tokens are masked, (B, T) bool: in each row those whose number is `phase` (B,) modulo `every`.

        A row with fewer tokens than `every` counts modulo their number, so that there is one to mask.
        """
        free = self._free(batch)
        period = free.sum(dim=1, keepdim=True).clamp(1, self.every)
        return free & ((free.cumsum(dim=1) - 1) % period == phase[:, None] % period)

    def masked(self, batch: Batch, places: torch.Tensor) -> Batch:
        """The batch with the mask token in these places."""
        ids = batch.inputs["input_ids"].masked_fill(places, self.token)
        return replace(batch, inputs={**batch.inputs, "input_ids": ids})

    def once(self, batch: Batch) -> Batch:
        """The batch with tokens masked; which ones, follows from the rows' own tokens."""
        phase = torch.tensor([int(key.partition(".")[0], 16) % self.every for key in batch.keys], device=batch.device)
        return self.masked(batch, self.places(batch, phase))

    def turns(self, batch: Batch) -> Iterator["MaskedBatch"]:
        """The batch again and again with other tokens masked, until each has been masked once."""
        periods = self._free(batch).sum(dim=1).clamp(max=self.every)
        for phase in range(int(periods.max())):
            rows = (periods > phase).nonzero().flatten()
            part = Batch(
                {name: tensor[rows] for name, tensor in batch.inputs.items()},
                None,
                tuple(batch.keys[row] for row in rows.tolist()),
                tuple(batch.rows[row] for row in rows.tolist()),
            )
            places = self.places(part, torch.full_like(rows, phase))
            yield MaskedBatch(self.masked(part, places), places, part.inputs["input_ids"][places])

    def _free(self, batch: Batch) -> torch.Tensor:
        """Which tokens may be masked: (B, T) bool."""
        ids = batch.inputs["input_ids"]
        return batch.token_mask & ~torch.isin(ids, torch.tensor(self.special, device=ids.device))


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with masked tokens: their places, (B, T) bool, and what was there, (N,), row by row."""

    batch: Batch
    places: torch.Tensor
    answers: torch.Tensor

    @property
    def owners(self) -> torch.Tensor:
        """The row of the whole set that each masked token belongs to, (N,) on the CPU."""
        return torch.tensor(self.batch.rows).repeat_interleave(self.places.sum(dim=1).cpu())


def cut_texts(
    texts: Sequence[str], tokenizer: Any, *, max_length: int
) -> tuple[Mapping[str, list[list[int]]], torch.Tensor]:
    """Tokenise texts whole: long ones become several rows of at most `max_length` tokens, special ones included.

    Returns rows by input name, unpadded, and the text that each belongs to, (rows,). Tokenizers without a fast
    implementation do not say what they cut off: theirs is lost.

    Raises UsageError: `max_length` leaves no room for text.
    """
    require_room(tokenizer, max_length, pair=False)
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=True,
        return_overflowing_tokens=tokenizer.is_fast,
    )
    owners = encoded.get("overflow_to_sample_mapping", range(len(texts)))
    return encoded, torch.tensor([*owners])
