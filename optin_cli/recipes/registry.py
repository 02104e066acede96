"""Every recipe by name."""

from collections.abc import Mapping

from optin_cli.recipes.recipe import Recipe


def recipes() -> Mapping[str, Recipe]:
    """Every recipe by name."""
    from optin_cli.recipes.flap import FLAP
    from optin_cli.recipes.kprune import KPRUNE
    from optin_cli.recipes.kwon import KWON
    from optin_cli.recipes.optin_paper import OPTIN_PAPER
    from optin_cli.recipes.scored import SCORED

    return {recipe.name: recipe for recipe in (*SCORED, OPTIN_PAPER, FLAP, KWON, KPRUNE)}
