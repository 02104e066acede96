"""Running text for models that continue it: one stream of tokens, cut into windows.

Documents follow each other in an order that depends on content and seed only, with an end token between two where the
tokenizer has one. Every window begins with the token that the tokenizer puts before a text, if it does. A token counts
in a perplexity if it is a document's own, not its first, and another of the stream precedes it in its window, so that
nothing is predicted across documents. Windows that overlap count each token once, where it has most before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from optin_cli.data.batch import Batch, cut_order, unique_keys
from optin_cli.data.sampling import content_hash, digest_of, rank_rows
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.documents import Document, read_documents
from optin_cli.data.text.samples import Samples
from optin_cli.errors import CheckpointError, DataError, UsageError, first_line
from optin_cli.tasks.schema import Task

NOT_COUNTED = -100
"""The label of a token that does not count, which PyTorch's losses pass over."""
CHUNK = 256
"""Documents that are tokenised together."""


@dataclass(frozen=True)
class Cutting:
    """How a stream becomes windows.

    length: tokens of a window, the one that begins it included. stride: tokens between the beginnings of two windows,
    None for windows side by side. partial: whether the last may be shorter. limit: windows to take, None for all; seed:
    which ones.
    """

    length: int
    stride: int | None
    partial: bool
    limit: int | None
    seed: int


@dataclass(frozen=True)
class Window:
    """Tokens of one window (T,) int64, and the same where they count, NOT_COUNTED where not."""

    ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class RunningText(Samples):
    """Documents and the windows of them that were chosen, which count as samples.

    texts: of documents that are no conversations. vocabulary: of the tokenizer that cut `windows`, since a model with
    another needs windows of its own.
    """

    documents: list[Document] = field(default_factory=list)
    cutting: Cutting = Cutting(1, None, True, None, 0)
    windows: tuple[Window, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.windows)

    def head(self, count: int) -> RunningText:
        """The first `count` windows."""
        return replace(self, windows=self.windows[:count])

    def windows_for(self, tokenizer: Any) -> tuple[Window, ...]:
        """The windows as another tokenizer makes them."""
        if tokenizer.get_vocab() == self.vocabulary:
            return self.windows
        return cut_documents(self.documents, tokenizer, self.cutting, self.name)[0]


@dataclass(frozen=True)
class Stream:
    """Tokens of documents one after another: (N,) int64 ids, and bool whether they count."""

    ids: torch.Tensor
    counts: torch.Tensor


def load_running(spec: DataSpec, task: Task | None, path: Path | None, tokenizer: Any, length: int) -> RunningText:
    """Read running text, and cut it into windows of `length` tokens of a tokenizer; some of them if `spec` limits them.

    To calibrate, all windows are whole.

    Raises:
        DataError: no text, or less of it than a window. UsageError: windows too short to predict anything in, or a
            stride that leaves tokens out.
    """
    found = read_documents(spec, task, path)
    calibrating = spec.role == "calibration"
    cutting = Cutting(length, None if calibrating else spec.stride, not calibrating, spec.limit, spec.seed)
    windows, total = cut_documents(found.items, tokenizer, cutting, found.name)
    digests = [digest_of(document) for document in found.items]
    selected = [content_hash(digests, None), length, cutting.stride, cutting.limit, cutting.seed]
    return RunningText(
        name=found.name,
        split=found.split,
        texts=[(document,) for document in found.items if isinstance(document, str)],
        labels=None,
        label_names=None,
        sha256=digest_of(selected),
        total=total,
        documents=found.items,
        cutting=cutting,
        windows=windows,
        vocabulary=tokenizer.get_vocab(),
    )


def cut_documents(
    documents: Sequence[Document], tokenizer: Any, cutting: Cutting, name: str
) -> tuple[tuple[Window, ...], int]:
    """The chosen windows of documents, and how many there were to choose from; errors as of `load_running`.

    With a limit, no more documents are tokenised than it takes.
    """
    begin, end = surroundings(tokenizer)
    room, stride = cutting.length - len(begin), cutting.stride or cutting.length - len(begin)
    if room < 2 or not 1 <= stride <= room:
        raise UsageError(
            f"Windows of {cutting.length} tokens, of which {len(begin)} come before the text, {stride} apart: expected "
            f"at least {len(begin) + 2} tokens, and 1 to {max(room, 1)} from one to the next.",
            hint="Pass a larger --seq-len, or a smaller --stride.",
        )
    order = rank_rows([digest_of(document) for document in documents], None, cutting.seed)
    enough = None if cutting.limit is None else cutting.limit * room
    stream = _tokenised([documents[row] for row in order], tokenizer, (begin, end), enough)
    windows = cut_stream(stream, begin, room, stride, partial=cutting.partial)
    if not windows:
        held = len(stream.ids) + len(begin)
        raise DataError(
            f"{name} holds {held} tokens, fewer than a window of {cutting.length}.",
            hint=f"Pass more text, or --seq-len {held}." if held > len(begin) + 1 else "Pass more text.",
        )
    if cutting.limit is None or cutting.limit >= len(windows):
        return windows, len(windows)
    ranked = rank_rows([digest_of(window.ids.tolist()) for window in windows], None, cutting.seed)
    return tuple(windows[row] for row in ranked[: cutting.limit]), len(windows)


def surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before a text, and what ends one: what it puts behind, else its end token if it has one."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    behind = whole[place + len(bare) :]
    if not behind and tokenizer.eos_token_id is not None:
        behind = [tokenizer.eos_token_id]
    return whole[:place], behind


def cut_stream(stream: Stream, begin: Sequence[int], room: int, stride: int, *, partial: bool) -> tuple[Window, ...]:
    """Windows of `room` tokens of the stream behind those that begin each, `stride` apart.

    partial: keep the last where it is shorter, if it counts any token.
    """
    windows, counted, first = [], 0, torch.tensor(begin, dtype=torch.int64)
    for start in range(0, len(stream.ids), stride):
        ids = stream.ids[start : start + room]
        place = torch.arange(start, start + len(ids))
        fresh = stream.counts[start : start + room] & (place >= counted) & (place > start)
        if len(ids) == room or (partial and bool(fresh.any())):
            labels = torch.cat([torch.full_like(first, NOT_COUNTED), torch.where(fresh, ids, NOT_COUNTED)])
            windows.append(Window(torch.cat([first, ids]), labels))
        counted = start + len(ids)
        if counted == len(stream.ids):
            break
    return tuple(windows)


def window_batches(windows: Sequence[Window], *, batch_size: int, labelled: bool) -> list[Batch]:
    """Batches of windows of equal length, by length and content, so that nothing is padded. labelled: with labels."""
    hashes = [digest_of(window.ids.tolist())[:32] for window in windows]
    order = sorted(range(len(windows)), key=lambda row: (len(windows[row].ids), hashes[row]))
    keys = unique_keys(order, hashes)
    batches = []
    for length in sorted({len(window.ids) for window in windows}):
        alike = [row for row in order if len(windows[row].ids) == length]
        for rows in cut_order(alike, batch_size):
            ids = torch.stack([windows[row].ids for row in rows])
            labels = torch.stack([windows[row].labels for row in rows]) if labelled else None
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            batches.append(Batch(inputs, labels, tuple(keys[row] for row in rows), tuple(rows)))
    return batches


def _tokenised(
    documents: Sequence[Document], tokenizer: Any, around: tuple[Sequence[int], Sequence[int]], enough: int | None
) -> Stream:
    """Tokens of the documents in their order, at least `enough` if there are as many. around: from `surroundings`."""
    begin, end = around
    ids: list[int] = []
    counts: list[bool] = []
    for start in range(0, len(documents), CHUNK):
        chunk = documents[start : start + CHUNK]
        texts = [document if isinstance(document, str) else chat_text(document, tokenizer) for document in chunk]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, row in zip(chunk, rows, strict=True):
            if ids and isinstance(document, str):  # a chat template ends a conversation by itself
                ids += end
                counts += [False] * len(end)
            own = row[len(begin) :] if begin and row[: len(begin)] == begin else row
            ids += own
            counts += [False, *[True] * (len(own) - 1)] if own else []
        if enough is not None and len(ids) >= enough:
            break
    return Stream(torch.tensor(ids, dtype=torch.int64), torch.tensor(counts, dtype=torch.bool))


def chat_text(messages: list[dict[str, Any]], tokenizer: Any) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Raises:
        CheckpointError: the tokenizer has no template. DataError: the template refuses the conversation.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise CheckpointError(
            "The data holds conversations (messages), but the tokenizer has no chat template.",
            hint="Put chat_template.jinja into the checkpoint, or name a column of text with --text-columns.",
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError) as error:
        raise DataError(f"The chat template refuses {messages!r:.100}: {first_line(error)}") from error
