"""A checkpoint, calibration data and a budget in; a mask, and how to adjust the cut weights, out.

A recipe is a published (or our own) way from a checkpoint to a smaller one, through the same groups, masks and
surgery, so that recipes differ in their method alone. Each is one module; the registry below names them.
"""

from __future__ import annotations

from collections.abc import Mapping

from optin_cli.recipes.recipe import Recipe


def recipes() -> Mapping[str, Recipe]:
    """Every recipe by name."""
    from optin_cli.recipes.kprune import KPRUNE
    from optin_cli.recipes.kwon import KWON
    from optin_cli.recipes.optin_paper import OPTIN_PAPER
    from optin_cli.recipes.scored import SCORED

    return {recipe.name: recipe for recipe in (*SCORED, OPTIN_PAPER, KWON, KPRUNE)}
