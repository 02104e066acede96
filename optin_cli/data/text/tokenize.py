"""Tokenise samples into padded batches, in an order that depends on content only."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from optin_cli.data.batch import Batch, cut_order, unique_keys
from optin_cli.data.text.samples import Samples
from optin_cli.errors import DataError, UsageError
from optin_cli.options.common import DEFAULT_LENGTH

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Encoded:
    """N tokenised samples.

    rows: token ids, masks and types by input name, unpadded. truncated: whether each was cut off. words: of samples
    that come as words, the number of the word that each token is of, None for special tokens.
    """

    rows: Mapping[str, list[list[int]]]
    truncated: list[bool]
    words: list[list[int | None]] = field(default_factory=list)


def make_batches(
    samples: Samples,
    tokenizer: Any,
    *,
    batch_size: int,
    max_length: int,
    labels: Sequence[int | float | Sequence[float]] | None = None,
) -> list[Batch]:
    """Tokenise, sort by length and content, and cut into batches, so that little padding is computed.

    samples: one or two texts each; two become one sequence, as the fast tokenizer of transformers pairs them.
    batch_size: samples per batch; the last may be smaller. max_length: tokens per sample, special ones included; longer
    samples are truncated. labels: what the model is to put out for each sample, a number or as many as it puts out;
    without them batches carry no labels.

    Raises UsageError: `batch_size` below 1, or `max_length` without room for any text. DataError: padding is needed and
    the tokenizer has no padding token.
    """
    encoded = encode(samples, tokenizer, max_length)
    batches = cut_batches(encoded.rows, tokenizer, batch_size=batch_size, labels=labels)
    return [replace(batch, truncated=sum(encoded.truncated[row] for row in batch.rows)) for batch in batches]


def tokenise(samples: Samples, tokenizer: Any, max_length: int) -> Mapping[str, list[list[int]]]:
    """Rows of token ids, masks and types by input name, unpadded; arguments and errors as of `make_batches`."""
    return encode(samples, tokenizer, max_length).rows


def encode(samples: Samples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise samples of texts or of words; arguments and errors as of `make_batches`."""
    pair = len(samples.texts[0]) == 2
    require_room(tokenizer, max_length, pair=pair)
    texts: list[Any] = [[each[i] for each in samples.texts] for i in range(1 + pair)]
    if samples.words is not None:
        texts = [[list(words) for words in samples.words]]
    how = {"is_split_into_words": samples.words is not None, "padding": False}
    found = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=True, **how)
    count = len(samples.texts)
    if found.encodings is None:
        # Tokenizers in Python do not say what they cut off.
        whole = tokenizer(*texts, verbose=False, **how)["input_ids"]
        return Encoded(found, [len(row) > max_length for row in whole])
    words = [] if samples.words is None else [found.word_ids(row) for row in range(count)]
    return Encoded(found, [bool(each.overflowing) for each in found.encodings], words)


def require_room(tokenizer: Any, max_length: int, *, pair: bool) -> None:
    """Refuse a length that special tokens alone take up (UsageError)."""
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= special:
        raise UsageError(
            f"The maximum length is {max_length} tokens, of which {special} are special ones; "
            f"expected at least {special + 1}."
        )


def cut_batches(
    encoded: Mapping[str, list[list[int]]],
    tokenizer: Any,
    *,
    batch_size: int,
    labels: Sequence[int | float | Sequence[float]] | None = None,
) -> list[Batch]:
    """Sort encoded rows by length and content, and cut them into padded batches; errors as of `make_batches`.

    encoded: rows of token ids, masks and types by input name; other names are passed over. labels: one per row, a
    number or a row of numbers.
    """
    fields = [name for name in INPUTS if name in encoded]
    ids = encoded["input_ids"]
    hashes = [hashlib.sha256(repr(row).encode()).hexdigest()[:32] for row in ids]
    # Labels break ties between samples of equal ids, whose order would otherwise be that of the file.
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), hashes[i], labels[i] if labels else 0))
    keys = unique_keys(order, hashes)
    batches = []
    for rows in cut_order(order, batch_size):
        inputs = {name: pad_rows([encoded[name][i] for i in rows], tokenizer, name) for name in fields}
        targets = None if labels is None else torch.tensor([labels[i] for i in rows])
        batches.append(Batch(inputs, targets, tuple(keys[i] for i in rows), tuple(rows)))
    return batches


def usable_length(tokenizer: Any, held: int | None, asked: int | None, *, default: int = DEFAULT_LENGTH) -> int:
    """Tokens a sample: `asked` (UsageError if too many), or `default` if tokenizer and model (`held`) take as many."""
    limit = int(tokenizer.model_max_length)
    most = limit if held is None else min(limit, held)
    if asked is None:
        return min(default, most)
    if not 1 <= asked <= most:
        raise UsageError(
            f"The maximum length is {asked} tokens; expected 1 to {most}, the most that the model takes.",
            hint=f"Pass --max-length {min(max(asked, 1), most)} or leave it out.",
        )
    return asked


def reserved_positions(model: torch.nn.Module, rows: int) -> int:
    """Rows of the position table that no token uses: those up to its padding index, where it has one.

    A model that a runtime holds shows no table, and says it in an attribute of this function's name.
    """
    stated = getattr(model, "reserved_positions", None)
    if isinstance(stated, int):
        return stated
    find_words = getattr(model, "get_input_embeddings", None)
    words = find_words() if callable(find_words) else None
    tables = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module is not words and module.num_embeddings == rows
    ]
    return max((t.padding_idx + 1 for t in tables if t.padding_idx is not None), default=0)


def pad_rows(rows: Sequence[Sequence[int]], tokenizer: Any, name: str) -> torch.Tensor:
    """Rows of one input padded to the longest, on the tokenizer's side: (rows, longest) int64."""
    longest = max(map(len, rows))
    if all(len(row) == longest for row in rows):
        return torch.tensor(rows)
    filler = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}.get(name, 0)
    if filler is None:
        raise DataError(
            "The tokenizer has no padding token, so samples of different lengths cannot share a batch.",
            hint="Set pad_token in the checkpoint's tokenizer_config.json, or pass --batch-size 1.",
        )
    left = tokenizer.padding_side == "left"
    whole = [[filler] * (longest - len(r)) + [*r] if left else [*r] + [filler] * (longest - len(r)) for r in rows]
    return torch.tensor(whole)
