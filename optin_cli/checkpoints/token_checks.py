"""The blocks of a model between which tokens may merge in; how many there are, and how many merge under a mask, out.

The tokens of a block are a group like its heads: `encoder.3.token` has as many units as the whole sequence has tokens
that may merge, and a unit is one such part of those that reach block 3. So blocks do not depend on each other: a group
that keeps 48 of 64 units lets three quarters of its tokens go on, rounded up, however many they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optin_cli.errors import ArchitectureError, ArtifactError
from optin_cli.model.tokens import Tokens

if TYPE_CHECKING:
    from optin_cli.checkpoints.checkpoint import Checkpoint


def require_tokens(checkpoint: Checkpoint) -> Tokens:
    """The tokens of a checkpoint, if they can be reduced.

    Raises:
        ArchitectureError: they cannot; says why.
    """
    tokens = checkpoint.structure.tokens
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
    elif tokens.units < 2:
        why, hint = f"of its {tokens.length} tokens {tokens.special} are special", None
    else:
        return tokens
    raise ArchitectureError(f"The tokens of {checkpoint.name} cannot be reduced: {why}.", hint=hint)


def check_merging(tokens: Tokens, kept: Mapping[str, Sequence[int]], name: str) -> None:
    """Refuse a mask by which no token goes on (ArtifactError)."""
    for group, block in tokens.groups.items():
        if group in kept and not kept[group]:
            raise ArtifactError(
                f"{name} keeps no unit of {group}, so that no token would go on behind {block}; at least one must.",
                hint=f"Keep 1 to {tokens.units} units: how many decides, not which.",
            )
