"""Batches of samples: the inputs of a model, with labels and keys."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from optin_cli.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """B samples padded to the longest of them, T tokens.

    inputs: the model's keyword arguments, (B, T) int64: input_ids, attention_mask (1 = real token), and token_type_ids
    if the tokenizer gives them; or (B, 1, T) for models that take several texts a sample. labels: (B,) int64 class ids,
    float32 values, (B, outputs) of them where a sample has several, or None. keys: one per sample, unique over all
    batches of a set: hash of its token ids, and its number among samples of the same ids. rows: which of the samples
    given to the tokenizer each is. paired: the second half of the rows are the second texts of the pairs that the first
    half begins, with one label a pair, (B / 2,). truncated: samples whose ends were cut off. prompt: how many real
    tokens every row begins with that are those of a prompt.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    keys: tuple[str, ...]
    rows: tuple[int, ...] = ()
    paired: bool = False
    truncated: int = 0
    prompt: int = 0

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return len(self.keys)

    @property
    def work(self) -> float:
        """How long a pass through a model takes, relative to other batches: as the numbers that it begins with."""
        return float(next(iter(self.inputs.values())).numel())

    @property
    def token_mask(self) -> torch.Tensor:
        """(B, T) bool, true where a token of a text is real."""
        return self.inputs["attention_mask"].flatten(1).bool()

    @property
    def device(self) -> torch.device:
        """Where the inputs lie."""
        return next(iter(self.inputs.values())).device

    def mask_for(self, features: torch.Tensor) -> torch.Tensor:
        """Which tokens of `features` (B, T, ...) are real: (B, T) bool; all of them where nothing is padded."""
        if "attention_mask" in self.inputs:
            return self.token_mask
        return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)

    def fingerprint(self) -> str:
        """Hash of its keys and tensors."""
        digest = hashlib.sha256(repr((self.keys, self.paired)).encode())
        labels = {} if self.labels is None else {"labels": self.labels}
        for name, tensor in {**self.inputs, **labels}.items():
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def repeated(self, times: int) -> Batch:
        """The samples `times` over, without labels: (times * B) rows."""
        inputs = {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in self.inputs.items()}
        return Batch(inputs, None, self.keys * times, self.rows * times, prompt=self.prompt)

    def parts(self, size: int) -> Iterator[Batch]:
        """The samples, up to `size` at a time, without labels."""
        for start in range(0, self.size, size):
            part = slice(start, start + size)
            inputs = {name: tensor[part] for name, tensor in self.inputs.items()}
            yield Batch(inputs, None, self.keys[part], self.rows[part], prompt=self.prompt)

    def where(self, taken: torch.Tensor) -> Batch:
        """The samples of the rows (B,) that are true, without labels."""
        numbers = taken.nonzero().flatten().tolist()
        inputs = {name: tensor[taken] for name, tensor in self.inputs.items()}
        keys, rows = (tuple(own[number] for number in numbers if own) for own in (self.keys, self.rows))
        return Batch(inputs, None, keys, rows, prompt=self.prompt)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels.to(device))


def unique_keys(order: Sequence[int], hashes: Sequence[str]) -> dict[int, str]:
    """A key for every row: its hash, and its number among rows of the same hash in that order."""
    seen: Counter[str] = Counter()
    keys = {}
    for row in order:
        keys[row] = f"{hashes[row]}.{seen[hashes[row]]}"
        seen[hashes[row]] += 1
    return keys


def cut_order(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The rows of every batch, in order; the last may be smaller (UsageError where the size is below 1)."""
    if batch_size < 1:
        raise UsageError(f"The batch size is {batch_size}; expected at least 1.")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def keyed_generator(*key: object) -> torch.Generator:
    """A generator on the CPU whose draws depend on the parts of a key alone, joined by slashes."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
