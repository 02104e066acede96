"""Which models llama.cpp runs, by which of its architectures, as `gguf_families.json` lists them by model class."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from optin_cli.exporting.registry import ExportError

FILE = Path(__file__).with_name("gguf_families.json")
Rotary = Literal["halves", "adjacent"]
"""Which two dimensions of a head turn together: n and n + half of the head, as in transformers, or 2n and 2n + 1."""


class Form(BaseModel):
    """An architecture of llama.cpp, and which dimensions of a head it turns together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    rotary: Rotary = "halves"


class Family(Form):
    """How llama.cpp runs the models of a class.

    ragged: the architecture for layers of different widths, None if there is none. needs: values of config keys that
    its code takes for granted. keys: further metadata, keys of the config by their names after the architecture's.
    norm_offset: what the class adds to the weights of its norms.
    """

    ragged: Form | None = None
    needs: dict[str, list[Any]] = {}
    keys: dict[str, str] = {}
    norm_offset: float = 0.0


@functools.cache
def known_families() -> Mapping[str, Family]:
    """All that are listed, by model class."""
    return TypeAdapter(dict[str, Family]).validate_json(FILE.read_bytes())


def find_family(model_class: str, config: Any) -> Family:
    """How a model of that class and config is run (ExportError if llama.cpp has no such architecture)."""
    known = known_families()
    if model_class not in known:
        raise ExportError(
            f"The target gguf cannot hold a {model_class}: llama.cpp runs it by no architecture that optin writes.",
            hint=f"It can hold {', '.join(known)}. For other models pass --to onnx.",
        )
    family = known[model_class]
    for key, allowed in family.needs.items():
        found = getattr(config, key, allowed[0])
        if found not in allowed:
            raise ExportError(
                f"The target gguf cannot hold this {model_class}: its config has {key} = {found!r}, and the "
                f"architecture {family.architecture} of llama.cpp computes as if it were {allowed[0]!r}.",
                hint="For this model pass --to onnx.",
            )
    return family
