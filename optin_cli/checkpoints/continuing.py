"""What a greedy continuation of prompts takes, by whatever runs a model: transformers, or another runtime."""

from collections.abc import Callable
from dataclasses import dataclass

from optin_cli.checkpoints.batching import Inputs


@dataclass(frozen=True)
class Continued:
    """The time that one greedy continuation of a batch took, and its cache of keys and values.

    prefill: seconds until the first new token. decode: seconds from there until the last one. cache_bytes: of the
    cache, for each token of a row. cache_dtype: the type of its numbers.
    """

    prefill: float
    decode: float
    cache_bytes: float
    cache_dtype: str


Continue = Callable[[Inputs, int], Continued]
"""Continues prompts, `input_ids` (rows, tokens) without padding, by so many tokens each, whatever they are."""
