"""A model with fewer tokens: rows of the embedding and of what puts out a number per token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from optin_cli.model.config_counts import Settings

SPECIAL = "_token_id"
"""How names of ids in configs of transformers end."""


def special_ids(config: Any, vocabulary: int) -> dict[str, int]:
    """Ids that a config names, by key."""
    raw = config.to_dict()
    return {
        key: value
        for key, value in raw.items()
        if key.endswith(SPECIAL) and isinstance(value, int) and 0 <= value < vocabulary
    }


def settings_for(config: Any, kept: Sequence[int]) -> Settings:
    """Keys of a config that state the kept tokens, which are numbered anew."""
    new = {old: number for number, old in enumerate(kept)}
    return {"vocab_size": len(kept), **{key: new[old] for key, old in special_ids(config, config.vocab_size).items()}}


def token_parameters(model: Any) -> list[str]:
    """Parameters of which the first axis runs over the vocabulary."""
    size = model.config.vocab_size
    homes = [model.get_input_embeddings(), model.get_output_embeddings()]
    paths = {path for path, module in model.named_modules() if any(module is home for home in homes)}
    parents = {path.rpartition(".")[0] for path in paths}
    return [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.shape[:1] == (size,)
        and (name.rpartition(".")[0] in paths or (parameter.dim() == 1 and name.rpartition(".")[0] in parents))
    ]


@torch.no_grad()
def with_tokens(model: Any, kept: Sequence[int], settings: Settings) -> nn.Module:
    """A copy of a model that knows the kept tokens only; weights that are tied stay tied."""
    names, found = token_parameters(model), copy.deepcopy(model)
    rows = torch.tensor(list(kept))
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the old one too, so that no other takes its id
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = found.get_submodule(path)
        old = getattr(module, leaf)
        if id(old) not in made:
            made[id(old)] = old, nn.Parameter(old[rows.to(old.device)].clone(), requires_grad=False)
        setattr(module, leaf, made[id(old)][1])
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(kept)
            if module.padding_idx is not None:
                module.padding_idx = list(kept).index(module.padding_idx)
        elif isinstance(module, nn.Linear):
            module.out_features = len(kept)
    for key, value in settings.items():
        setattr(found.config, key, value)
    result: nn.Module = found
    return result
