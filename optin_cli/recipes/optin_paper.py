"""OPTIN as published: "The Need for Speed: Pruning Transformers with One Recipe" (ICLR 2024, arXiv 2403.17921).

Algorithm 1 with its own search and no weight update:

    importance(u) = mean over samples of
        sum_{z >= block(u)} ||G_z - G_z^(u)||_F^2 / T^2  +  lambda tau^2 KL(p || p^(u))

Heads are scored as the paper does, by removing each and re-running (on the share of samples set aside for exact
scores); all other units by the sketch of the same quantity. The search keeps the most important heads of all
layers and the most important of all other units, for the best split of the FLOP budget between them.

Simplifications: Gram matrices are those of each sample without padding instead of 768 random tokens, and
KL is divided by the temperature where the equation says so.
"""

from dataclasses import replace

from optin_cli.recipes.recipe import Prepared, Recipe, Setting
from optin_cli.recipes.scored import prepare_scored

OUTPUT_WEIGHT = 0.1
"""lambda"""
TEMPERATURE = 4.0
"""tau"""


def prepare_optin_paper(setting: Setting) -> Prepared:
    """Score once; each budget then searches as the paper does."""
    options = replace(setting.options, output_weight=OUTPUT_WEIGHT, temperature=TEMPERATURE)
    return prepare_scored(replace(setting, options=options), estimator="hybrid", algorithm="optin", refit=False)


OPTIN_PAPER = Recipe("optin-paper", prepare_optin_paper)
