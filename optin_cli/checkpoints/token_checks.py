"""Refuse masks and scoring of tokens where they cannot merge."""

from collections.abc import Callable, Iterable, Mapping

from optin_cli.artifacts.costs import TOKEN
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.errors import ArchitectureError
from optin_cli.model.tokens import Tokens, tokens_of


def require_tokens(checkpoint: Checkpoint) -> Tokens:
    """The tokens of a checkpoint, if they can merge.

    Raises:
        ArchitectureError: they cannot; says why.
    """
    tokens = tokens_of(checkpoint.structure)
    if checkpoint.blueprint.plan and checkpoint.blueprint.plan.get("merge"):
        why, hint = "its tokens merge already", "Cut the original once, by one mask of heads, neurons and tokens."
    elif checkpoint.input.unmergeable is not None:
        why, hint = checkpoint.input.unmergeable, None
    elif tokens is None:
        why = f"its family {checkpoint.structure.family} does not describe how: its blocks need their tokens in place "
        why += "(windows, convolutions, relative positions), or take no attention mask"
        hint = "Plain vision transformers can: ViT, DeiT and DINOv2 of transformers and timm."
    elif tokens.dense:
        why, hint = f"its output {tokens.dense[0]} says something of every token", "Pass a classifier."
    elif tokens.mergeable < 2:
        why, hint = f"of its {tokens.length} tokens {tokens.special} are special", None
    else:
        return tokens
    raise ArchitectureError(f"The tokens of {checkpoint.name} cannot be reduced: {why}.", hint=hint)


REQUIRED: Mapping[str, Callable[[Checkpoint], object]] = {TOKEN: require_tokens}
"""By kind of units, a function that refuses checkpoints which cannot lose them."""


def require_kinds(checkpoint: Checkpoint, groups: Iterable[str]) -> None:
    """Refuse a mask of units that the checkpoint cannot lose (ArchitectureError); groups: their names."""
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in groups):
        if kind in REQUIRED:
            REQUIRED[kind](checkpoint)
