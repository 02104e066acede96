"""Folders as sentence-transformers write them."""

import json
from pathlib import Path

import torch
from helpers.models import save_checkpoint
from safetensors.torch import save_file

SWITCH = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Switches of poolers in the settings of earlier versions."""
WIDTH = 32


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def sentence_folder(
    folder, pooling=("cls",), *, family="bert", after=("Normalize",), at="", settings=None, prompts=None, **overrides
):
    """A tiny encoder with its modules. at: where the transformer lies. after: modules behind the pooling.

    settings: of the transformer. prompts: of the whole. overrides: of the transformer's config.
    """
    folder = Path(folder)
    save_checkpoint(folder / at, family, "base", **overrides)
    write_json(
        folder / at / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False, **(settings or {})}
    )
    places = [at, "1_Pooling", *(f"{number}_{kind}" for number, kind in enumerate(after, start=2))]
    kinds = ["Transformer", "Pooling", *after]
    modules = [
        {"idx": n, "name": str(n), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for n, (place, kind) in enumerate(zip(places, kinds, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    switches = {key: mode in pooling for mode, key in SWITCH.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **switches})
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
    (folder / "notes.txt").write_text("Training data of this encoder.\n")
    generator, width = torch.Generator().manual_seed(0), WIDTH * len(pooling)
    for kind, place in zip(kinds[2:], places[2:], strict=True):
        if kind == "Dense":
            sizes = {"in_features": width, "out_features": 6, "bias": True}
            write_json(
                folder / place / "config.json", sizes | {"activation_function": "torch.nn.modules.activation.Tanh"}
            )
            state = {"linear.weight": torch.randn(6, width, generator=generator), "linear.bias": torch.ones(6)}
            save_file(state, folder / place / "model.safetensors")
            width = 6
        if kind == "LayerNorm":
            write_json(folder / place / "config.json", {"dimension": width})
            state = {"norm.weight": torch.rand(width, generator=generator), "norm.bias": torch.ones(width)}
            torch.save(state, folder / place / "pytorch_model.bin")
    return folder
