"""Continue prompts of a GGUF file by llama.cpp with its cache of keys and values, and say what that took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.continuing import Continue, Continued
from optin_cli.exporting.registry import ExportError
from optin_cli.exporting.trace import silenced

CACHE_DTYPE, CACHE_ITEM_BYTES = "float16", 2
"""What llama.cpp keeps keys and values in unless it is told otherwise."""


def continuing(path: str, threads: int) -> Continue:
    """What continues prompts on the CPU; the file is opened at the first call, and again for another shape.

    It raises ExportError where llama.cpp does not take so many rows, or has too little memory.
    """
    cache_bytes = cached_numbers(path) * CACHE_ITEM_BYTES
    held: dict[tuple[int, int], _Rows] = {}

    def run(inputs: Inputs, new_tokens: int) -> Continued:
        prompts = inputs["input_ids"].tolist()
        shape = len(prompts), len(prompts[0]) + new_tokens
        if shape not in held:
            held.clear()
            held[shape] = _Rows(path, *shape, threads)
        begin = time.perf_counter()
        following = held[shape].begin(prompts)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            following = held[shape].add(following)
        return Continued(first - begin, time.perf_counter() - first, cache_bytes, CACHE_DTYPE)

    return run


def cached_numbers(path: str) -> int:
    """Numbers that the layers' keys and values of one token are, by the sizes that a file states."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    prefix = fields["general.architecture"].contents()
    layers, groups = (fields[f"{prefix}.{key}"].contents() for key in ("block_count", "attention.head_count_kv"))
    width = sum(fields[f"{prefix}.attention.{part}_length"].contents() for part in ("key", "value"))
    return int(width) * (sum(groups) if isinstance(groups, list) else int(groups) * int(layers))


class _Rows:
    """So many rows of at most so many tokens in a context of llama.cpp, each a sequence of its own."""

    def __init__(self, path: str, rows: int, tokens: int, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        with silenced():  # this holds the weights; its own context has one sequence only
            self.file = llama_cpp.Llama(path, n_ctx=1, n_batch=1, verbose=False)
        how = llama_cpp.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = rows * tokens
        how.n_seq_max = rows
        how.n_threads = how.n_threads_batch = threads
        with silenced():
            self.context = llama_cpp.llama_init_from_model(self.file.model, how)
        if not self.context:
            raise ExportError(
                f"llama.cpp does not generate {rows} x {tokens} tokens of {Path(path).name} at once.",
                hint="Pass a smaller --decode-batch, --prompt-length or --new-tokens.",
            )
        self.batch = llama_cpp.llama_batch_init(rows * tokens, 0, 1)
        self.place = 0

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self.api.llama_free(self.context)
        if hasattr(self, "batch"):
            self.api.llama_batch_free(self.batch)

    def begin(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read prompts of equal length into an empty cache; the most likely next token of each."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.place = 0
        return self._read(prompts)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Read one more token of each row; the most likely next token of each."""
        return self._read([[token] for token in tokens])

    def _read(self, rows: Sequence[Sequence[int]]) -> list[int]:
        import numpy

        batch, length = self.batch, len(rows[0])
        batch.n_tokens = len(rows) * length
        for row, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                at = row * length + offset
                batch.token[at], batch.pos[at] = token, self.place + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = offset == length - 1
        code = self.api.llama_decode(self.context, batch)
        if code != 0:
            raise ExportError(f"llama.cpp cannot read {len(rows)} x {length} tokens: it returned {code}.")
        self.place += length
        size, last = self.file.n_vocab(), range(length - 1, batch.n_tokens, length)
        found = [self.api.llama_get_logits_ith(self.context, at) for at in last]
        return [int(numpy.ctypeslib.as_array(logits, (size,)).argmax()) for logits in found]
