"""The configuration of a decoder whose layers differ, as DeciLM's model code in vLLM and elsewhere reads it."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary, as JSON holds it, whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):  # type: ignore[misc]
    """The configuration of Llama with `block_configs`: for each layer its attention and its FFN."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Attributes({part: Attributes(said) if isinstance(said, dict) else said for part, said in block.items()})
            for block in block_configs or []
        ]
