"""Build what sentence-transformers put behind a transformer: pooling, projections, norms."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from optin_cli.checkpoints.folders import weight_files
from optin_cli.checkpoints.libraries.registry import Blueprint
from optin_cli.checkpoints.sentences import CONFIG, Stage
from optin_cli.checkpoints.weights import read_state
from optin_cli.errors import CheckpointError
from optin_cli.model.embeddings import POOLERS, Embedding, Projection, UnitLength

MODE_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
)
"""Poolers by the switches of versions that knew no `pooling_mode`."""
NAME = "sentence_embedding"
"""What sentence-transformers call an embedding."""
ACTIVATIONS = "torch.nn."


def embedding_of(blueprint: Blueprint) -> Embedding:
    """How a model's hidden states become embeddings: as its folder says, else their mean over real tokens.

    Raises CheckpointError: settings or weights of a module are unsound, or do not fit the transformer.
    """
    sentences = blueprint.sentences
    if sentences is None or not sentences.embeds:
        return Embedding()
    pooling, *rest = sentences.stages
    modes = _modes(pooling)
    for stage in rest:
        _require_embeddings(stage)
    layers = nn.Sequential(*(BUILDERS[stage.kind](stage) for stage in rest))
    layers.eval().requires_grad_(False)
    found = Embedding(modes, layers, bool(pooling.settings.get("include_prompt", True)))
    width = int(blueprint.config.hidden_size)
    try:
        found(torch.zeros(1, 1, width), torch.ones(1, 1, dtype=torch.bool))
    except RuntimeError as error:
        raise CheckpointError(
            f"The modules of {sentences.folder} do not fit each other, or hidden states of {width} numbers: {error}."
        ) from error
    return found


def _modes(stage: Stage) -> tuple[str, ...]:
    """Names of the poolers: stated by themselves, by switches, or the mean."""
    stated = stage.settings.get("pooling_mode")
    if stated is None:
        stated = [mode for key, mode in MODE_KEYS.items() if stage.settings.get(key)] or ["mean"]
    modes = (stated,) if isinstance(stated, str) else tuple(map(str, stated))
    if unknown := [mode for mode in modes if mode not in POOLERS]:
        raise CheckpointError(
            f"{stage.folder / CONFIG} asks for the pooling {unknown[0]!r}; expected one of {', '.join(POOLERS)}."
        )
    return modes


def _require_embeddings(stage: Stage) -> None:
    """Refuse a module that works on something else than embeddings."""
    for key in ("module_input_name", "module_output_name"):
        if stage.settings.get(key) not in (None, NAME):
            raise CheckpointError(f"{stage.folder / CONFIG} has the {key} {stage.settings[key]!r}; expected {NAME!r}.")


def _dense(stage: Stage) -> nn.Module:
    settings = stage.settings
    before, after = _sizes(stage, "in_features", "out_features")
    linear = nn.Linear(before, after, bias=bool(settings.get("bias", True)))
    return _loaded(Projection(linear, _activation(stage), residual=bool(settings.get("use_residual"))), stage)


def _activation(stage: Stage) -> nn.Module:
    """An activation of torch by its full name."""
    name = str(stage.settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = getattr(nn, name.rpartition(".")[2], None) if name.startswith(ACTIVATIONS) else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise CheckpointError(f"{stage.folder / CONFIG} has the activation {name}; expected a module of torch.nn.")
    activation: nn.Module = kind()
    return activation


def _norm(stage: Stage) -> nn.Module:
    inner = nn.ModuleDict({"norm": nn.LayerNorm(_sizes(stage, "dimension"))})
    return nn.Sequential(*_loaded(inner, stage).children())


def _sizes(stage: Stage, *keys: str) -> list[int]:
    try:
        return [int(stage.settings[key]) for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        found = ", ".join(stage.settings) or "nothing"
        raise CheckpointError(
            f"{stage.folder / CONFIG} of a {stage.kind} says {found}; expected whole numbers {' and '.join(keys)}."
        ) from error


def _loaded(module: nn.Module, stage: Stage) -> nn.Module:
    """The module with the weights of its folder, in float32."""
    state = read_state(weight_files(stage.folder))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {stage.folder} do not fit a {stage.kind}: {error}") from error
    return module.float()


BUILDERS: Mapping[str, Callable[[Stage], nn.Module]] = MappingProxyType(
    {
        "Dense": _dense,
        "Normalize": lambda _stage: UnitLength(),
        "LayerNorm": _norm,
        "Dropout": lambda _stage: nn.Identity(),
    }
)
"""What builds a module that may follow pooling, by its class."""
