"""Folders of pruned decoders in the terms of DeciLM, which vLLM and others run by their own code.

The config is one of DeciLM, read by a class beside it. It also holds the plan by which transformers build the pruned
model, and what transformers call the model otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optin_cli.checkpoints.libraries.registry import CONFIG, MODELING, PLAN_KEY
from optin_cli.searching.decilm import MULTIPLE, block_configs, expressible, intermediate_size

CONFIGURATION = Path(__file__).with_name("configuration_decilm.py")
MODEL_TYPE, CONFIG_CLASS = "nemotron-nas", "DeciLMConfig"
MODEL_CLASS, AUTO_CLASS = "DeciLMForCausalLM", "AutoModelForCausalLM"
BASE_KEY = "optin_base"
"""Key of the config under which it says what transformers call the model."""
TERMS = ("model_type", "architectures")
CLASS = """

from .configuration_decilm import DeciLMConfig  # noqa: E402


class {name}({base}):
    \"\"\"The class above, for the configuration of DeciLM.\"\"\"

    config_class = DeciLMConfig
"""


def head_dim_of(config: Any) -> int:
    """Dimensions of a decoder's heads, which configs may leave to follow from others."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Sizes:
    """Query heads, key-value heads and width of the FFN of every layer."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: Any) -> None:
        def rows(number: int, part: str) -> int:
            return shapes[f"model.layers.{number}.{part}.weight"][0]

        layers = range(config.num_hidden_layers)
        head_dim = head_dim_of(config)
        parts = ("self_attn.q_proj", "self_attn.k_proj")
        self.heads = [(rows(n, parts[0]) // head_dim, rows(n, parts[1]) // head_dim) for n in layers]
        self.widths = [rows(n, "mlp.gate_proj") for n in layers]

    def problems(self, config: Any, model_class: str) -> list[str]:
        """What the config of DeciLM cannot state, in words."""
        if model_class not in expressible():
            return [f"{model_class} computes otherwise than {MODEL_CLASS}"]
        found = [
            f"the config has {key} = {getattr(config, key)!r}, but {MODEL_CLASS} computes as if it were {allowed[0]!r}"
            for key, allowed in expressible()[model_class].items()
            if getattr(config, key, allowed[0]) not in allowed
        ]
        asking = sorted({heads for heads, _ in self.heads})
        if len(asking) > 1:
            found.append(f"layers have {' and '.join(map(str, asking))} query heads, and one number is stated for all")
        for number, (heads, groups) in enumerate(self.heads):
            if groups < 1 or heads % groups:
                found.append(f"layer {number} has {heads} query heads for {groups} key-value heads")
        for number, stated in enumerate(self._stated(config.hidden_size)):
            if stated != self.widths[number]:
                found.append(
                    f"layer {number} has {self.widths[number]} neurons, not a multiple of {MULTIPLE}, 1 or more"
                )
        return found

    def blocks(self, hidden_size: int) -> list[dict[str, Any]]:
        """The part of the config that states the layers."""
        return block_configs(self.heads, self.widths, hidden_size)

    def _stated(self, hidden_size: int) -> list[int]:
        """Widths as the config's multipliers come out, -1 where none can be meant."""
        return [
            -1 if width < MULTIPLE else intermediate_size(block["ffn"]["ffn_mult"], hidden_size)
            for width, block in zip(self.widths, self.blocks(hidden_size), strict=True)
        ]


def to_decilm(folder: Path, sizes: Sizes) -> None:
    """Turn a folder with a plan into one of DeciLM, which transformers load as before, with its code."""
    path = folder / CONFIG
    raw = json.loads(path.read_text(encoding="utf-8"))
    base = raw["auto_map"][AUTO_CLASS].rpartition(".")[2]
    asking, asked = sizes.heads[0]
    raw |= {
        BASE_KEY: {key: raw[key] for key in TERMS},
        "model_type": MODEL_TYPE,
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION.stem}.{CONFIG_CLASS}",
            AUTO_CLASS: f"{Path(MODELING).stem}.{MODEL_CLASS}",
        },
        "block_configs": sizes.blocks(raw["hidden_size"]),
        "num_attention_heads": asking,
        "num_key_value_heads": asked,
    }
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CONFIGURATION.name).write_text(CONFIGURATION.read_text(encoding="utf-8"), encoding="utf-8")
    with (folder / MODELING).open("a", encoding="utf-8") as file:
        file.write(CLASS.format(name=MODEL_CLASS, base=base))


def in_own_terms(raw: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers know it: one in the terms of DeciLM that a pruned folder has, without those."""
    if BASE_KEY not in raw or PLAN_KEY not in raw:
        return raw
    left = {key: value for key, value in raw.items() if key not in (BASE_KEY, "block_configs", "auto_map")}
    return left | {key: raw[BASE_KEY][key] for key in TERMS}
