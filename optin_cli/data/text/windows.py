"""Cut long contexts into windows: each the question and as much of the context as a model holds.

Consecutive windows of a context share `stride` tokens, so that an answer cut by one lies whole in the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optin_cli.data.text.tokenize import INPUTS
from optin_cli.errors import UsageError

MOST_QUESTION = 64
"""Tokens that a question may have, as BERT's own evaluation of SQuAD limits it; longer ones are cut."""
CHUNK = 512


@dataclass(frozen=True)
class Windows:
    """W windows of one or more per sample.

    fields: token ids, masks and types by input name, one row a window. owners: the sample of each window.
    spans: (tokens, 2) int32 per window, the characters of the context that each token covers (end exclusive),
    -1 for tokens of the question and special ones. nulls: the token that stands for "no answer", per window.
    """

    fields: dict[str, list[list[int]]]
    owners: list[int]
    spans: list[torch.Tensor]
    nulls: list[int]


def cut_windows(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Any, *, max_length: int, stride: int
) -> Windows:
    """Tokenise questions with their contexts, by a fast tokenizer of transformers.

    max_length: tokens per window, special ones included (UsageError without room for a token of each). stride: tokens
    of the context that a window shares with the one before, not negative; at most half of a window's.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - special
    if room < 2 or stride < 0:
        raise UsageError(
            f"Windows of {max_length} tokens, of which {special} are special ones, that share {stride}: expected "
            f"at least {special + 2} tokens, and to share 0 or more."
        )
    most = min(MOST_QUESTION, room // 2)
    windows = Windows({}, [], [], [])
    for start in range(0, len(questions), CHUNK):
        chunk = slice(start, start + CHUNK)
        encoded = tokenizer(
            _shortened(questions[chunk], tokenizer, most),
            list(contexts[chunk]),
            truncation="only_second",
            max_length=max_length,
            stride=min(stride, (room - most) // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=True,
            padding=False,
        )
        for name in filter(encoded.__contains__, INPUTS):
            windows.fields.setdefault(name, []).extend(encoded[name])
        windows.owners.extend(start + owner for owner in encoded["overflow_to_sample_mapping"])
        for window, offsets in enumerate(encoded["offset_mapping"]):
            context = torch.tensor([part == 1 for part in encoded.sequence_ids(window)])
            spans = torch.tensor(offsets, dtype=torch.int32)
            windows.spans.append(spans.masked_fill(~context[:, None], -1))
        first = tokenizer.cls_token_id
        windows.nulls.extend(ids.index(first) if first in ids else 0 for ids in encoded["input_ids"])
    return windows


def _shortened(questions: Sequence[str], tokenizer: Any, most: int) -> list[str]:
    """The questions without leading space, cut after `most` tokens."""
    stripped = [question.lstrip() for question in questions]
    offsets = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        question[: places[most - 1][1]] if len(places) > most else question
        for question, places in zip(stripped, offsets["offset_mapping"], strict=True)
    ]
