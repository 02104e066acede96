"""What the config of DeciLM, which vLLM and others run without further code, can state of a decoder's layers.

Its layers differ in the width of their FFN, by a multiplier of the hidden size: `ffn_mult` stands for
2/3 x ffn_mult x hidden size, rounded up to a multiple of 256 (`DeciLMForCausalLM`, nvidia/Llama-3_1-Nemotron-51B).
The number of query heads is one for all layers, that of key-value heads is stated by how many query heads share one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optin_cli.errors import UsageError

FILE = Path(__file__).with_name("decilm.json")
MULTIPLE = 256
"""What widths of an FFN are rounded up to."""
NEURON = "neuron"
HINT = "Search with --layout uniform, or without --layout."


@functools.cache
def expressible() -> Mapping[str, Mapping[str, list[Any]]]:
    """Model classes that compute as DeciLM does, and values of config keys without which they do not."""
    found: dict[str, dict[str, list[Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def require_decilm(model_class: str) -> None:
    """Refuse a model class that DeciLM cannot stand for (UsageError)."""
    if model_class not in expressible():
        raise UsageError(
            f"--layout deci cannot be had for {model_class}, which computes otherwise than DeciLM; it can for "
            f"{', '.join(expressible())}.",
            hint=HINT,
        )


def intermediate_size(ffn_mult: float, hidden_size: int) -> int:
    """The width of an FFN that a multiplier states."""
    return -(-int(2 * ffn_mult * hidden_size / 3) // MULTIPLE) * MULTIPLE


def ffn_mult(width: int, hidden_size: int) -> float:
    """A multiplier that states a width, which is a multiple of 256.

    From the middle between that and the next lower one, so that no rounding reaches another.
    """
    return 1.5 * (width - MULTIPLE / 2) / hidden_size


def block_configs(heads: list[tuple[int, int]], widths: list[int], hidden_size: int) -> list[dict[str, Any]]:
    """The part of the config that states each layer. heads: how many ask in it, and how many are asked."""
    return [
        {
            "attention": {"n_heads_in_group": asking // asked, "no_op": False, "replace_with_linear": False},
            "ffn": {"ffn_mult": ffn_mult(width, hidden_size), "no_op": False, "replace_with_linear": False},
        }
        for (asking, asked), width in zip(heads, widths, strict=True)
    ]
