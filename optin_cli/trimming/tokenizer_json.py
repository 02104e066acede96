"""The JSON of a fast tokenizer, with fewer tokens: pure functions on decoded documents.

What a text of kept tokens becomes does not change. WordPiece takes the longest token that fits, which is there still.
Unigram takes the likeliest segmentation, which is there still. BPE applies merges in order of rank; those that made a
kept token, and the tokens between, are kept with it (`closed`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from optin_cli.errors import CheckpointError

Document = dict[str, Any]


def tokens_of(document: Document) -> dict[str, int]:
    """Ids by token, added ones included."""
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        found = dict(vocabulary)
    else:
        found = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return found | {token["content"]: token["id"] for token in document["added_tokens"]}


def required_ids(document: Document) -> set[int]:
    """Ids that stay whatever the texts: added tokens, the unknown one, and single bytes to fall back on."""
    model, tokens = document["model"], tokens_of(document)
    found = {token["id"] for token in document["added_tokens"]}
    if isinstance(model.get("unk_token"), str):
        found.add(tokens[model["unk_token"]])
    if isinstance(model.get("unk_id"), int):
        found.add(model["unk_id"])
    if model.get("byte_fallback"):
        found |= {number for token, number in tokens.items() if len(token) == 6 and token.startswith("<0x")}
    return found


def closed(document: Document, kept: Collection[int]) -> set[int]:
    """The kept ids with those of all tokens that BPE passes on the way to them."""
    if document["model"]["type"] != "BPE":
        return set(kept)
    tokens = tokens_of(document)
    names = {number: token for token, number in tokens.items()}
    ranks = {pair: rank for rank, pair in enumerate(_merges(document))}
    found = set(kept)
    for number in kept:
        parts = list(names.get(number, ""))
        while len(parts) > 1:
            rank, place = min(
                ((ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))),
                default=(len(ranks), 0),
            )
            if rank == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            found |= {tokens[part] for part in parts if part in tokens}
        found |= {tokens[part] for part in names.get(number, "") if part in tokens}
    return found


def with_tokens(document: Document, kept: Sequence[int]) -> Document:
    """The same tokenizer with the kept ids only, ascending, which become 0, 1, ….

    Raises:
        CheckpointError: its model is none of WordPiece, BPE, Unigram and WordLevel, or a special token is not kept.
    """
    new = {old: number for number, old in enumerate(kept)}
    found = copy.deepcopy(document)
    model = found["model"]
    if model["type"] not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        raise CheckpointError(f"The tokenizer is a {model['type']}; WordPiece, BPE, Unigram and WordLevel are trimmed.")
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        pairs = zip(document["model"]["merges"], _merges(document), strict=True)
        model["merges"] = [written for written, (a, b) in pairs if {a, b, a + b} <= model["vocab"].keys()]
    for token in found["added_tokens"]:
        token["id"] = new[token["id"]]
    for settings in _special_ids(found):
        _renumber(settings, new)
    return found


def _merges(document: Document) -> list[tuple[str, str]]:
    """Pairs that merge, first ones first; older files write them with a space between."""
    written = (m.split(" ", 1) if isinstance(m, str) else m for m in document["model"]["merges"])
    return [(first, second) for first, second in written]


def _special_ids(document: Document) -> Iterator[Document]:
    """Parts of a tokenizer that name ids of special tokens."""
    if document.get("padding"):
        yield document["padding"]
    waiting = [document.get("post_processor")]
    while waiting:
        part = waiting.pop()
        if part:
            waiting += part.get("processors", [])
            yield part


def _renumber(part: Document, new: Mapping[int, int]) -> None:
    """Replace the ids in a part of a tokenizer."""
    if "pad_id" in part:
        part["pad_id"] = new[part["pad_id"]]
    for role in ("sep", "cls"):  # of BERT's and RoBERTa's own post-processors
        if role in part:
            part[role] = [part[role][0], new[part[role][1]]]
    for token in (part.get("special_tokens") or {}).values():  # of templates
        token["ids"] = [new[old] for old in token["ids"]]
