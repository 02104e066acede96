"""Costs of a model's units, and what of a model a mask leaves. No model, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from optin_cli.artifacts.base import Totals, Vector32
from optin_cli.artifacts.costs import BLOCK, TOKEN, GroupCost, TokenCosts, merges_at
from optin_cli.artifacts.mask import Budget
from optin_cli.artifacts.scores import ScoresHeader
from optin_cli.searching.token_costs import block_macs, matching_macs

ROUNDING = 1e-9
"""Largest relative difference between two computations of the same share."""


@dataclass(frozen=True)
class Costs:
    """What a search weighs importance against.

    groups: unit costs by group name. totals: of the whole model, which shares refer to. tokens: how costs depend on the
    length of a sequence whose tokens merge; None where they do not. dropped: whole blocks that are gone already.
    """

    groups: Mapping[str, GroupCost]
    totals: Totals
    tokens: TokenCosts | None = None
    dropped: Mapping[str, GroupCost] = field(default_factory=dict)

    @classmethod
    def of(cls, header: ScoresHeader) -> Costs:
        """Those that scores record."""
        return cls(header.groups, header.totals, header.tokens)

    @property
    def token_groups(self) -> dict[str, str]:
        """Names of the groups whose units are tokens, by block."""
        return {group.block: name for name, group in self.groups.items() if group.kind == TOKEN}

    @property
    def whole_blocks(self) -> dict[str, GroupCost]:
        """The groups that stand for a whole block each."""
        return {name: group for name, group in self.groups.items() if group.kind == BLOCK}

    def without(self, blocks: Collection[str]) -> Costs:
        """Costs of the units in all blocks but these, given as the groups that stand for them."""
        whole = self.whole_blocks
        dropped = {name: whole[name] for name in blocks}
        gone = {group.block for group in dropped.values()}
        left = {name: g for name, g in self.groups.items() if g.kind != BLOCK and g.block not in gone}
        return replace(self, groups=left, dropped=dropped)

    def within_blocks(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """A mask in which blocks that go as a whole count as that alone: the groups inside them as if they stayed."""
        gone = {group.block for name, group in self.whole_blocks.items() if not len(kept.get(name, (0,)))}
        inside = {name for name, group in self.groups.items() if group.block in gone and group.kind != BLOCK}
        return {name: range(self.groups[name].units) if name in inside else units for name, units in kept.items()}

    def only(self, names: Collection[str]) -> Costs:
        """Those of some groups."""
        return replace(self, groups={name: group for name, group in self.groups.items() if name in names})

    def with_merging(self, counts: Sequence[int]) -> Costs:
        """Costs of all other units, and of the whole model, with tokens merged behind each block."""
        tokens = self.tokens
        if tokens is None:
            return self
        length, macs = tokens.length, float(self.totals.macs)
        shares = {}
        for name, count in zip(tokens.blocks, counts, strict=True):
            shares[name] = length / tokens.length
            macs += block_macs(tokens, name, length) - tokens.blocks[name].macs
            macs += matching_macs(tokens, length - tokens.special, count)
            length -= count
        scaled = {}
        for name, group in self.groups.items():
            if group.kind != TOKEN:
                share, square = shares.get(group.block, 1.0), tokens.unit_square.get(name, 0.0)
                unit = (group.unit_macs - square) * share + square * share**2
                shared = {
                    other: both.model_copy(update={"macs": both.macs * share}) for other, both in group.shared.items()
                }
                scaled[name] = group.model_copy(update={"unit_macs": unit, "shared": shared})
        return Costs(scaled, self.totals.model_copy(update={"macs": round(macs)}))

    def merges(self, kept: Mapping[str, Sequence[int]]) -> list[int]:
        """How many tokens merge behind each block under a mask."""
        if self.tokens is None:
            return []
        units = self.tokens.length - self.tokens.special
        left = {block: len(kept[name]) for block, name in self.token_groups.items() if name in kept}
        return merges_at([left.get(name, units) for name in self.tokens.blocks], units)

    def remaining(self, kept: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Shares of the whole model's MACs and parameters that a mask leaves."""
        merged, kept = self.with_merging(self.merges(kept)), self.within_blocks(kept)
        groups, totals = merged.groups, merged.totals
        gone = {name: group.units - len(kept.get(name, range(group.units))) for name, group in groups.items()}
        macs = totals.macs - sum(g.unit_macs * gone[n] for n, g in groups.items())
        parameters = totals.parameters - sum(g.unit_parameters * gone[n] for n, g in groups.items())
        # What both groups of a pair removed has been taken off twice.
        for name, group in groups.items():
            for other, shared in group.shared.items():
                if other in groups:
                    macs += shared.macs * gone[name] * gone[other]
                    parameters += shared.parameters * gone[name] * gone[other]
        shares = {"macs": macs / totals.macs, "parameters": parameters / totals.parameters}
        if self.tokens is None:
            return shares
        return {**shares, "macs": shares["macs"] * totals.macs / self.totals.macs}

    def recount(self, budget: Budget, kept: Mapping[str, Sequence[int]]) -> Budget:
        """The budget of a mask, with the shares that its kept units reach where it was edited after the search.

        The share of latency is then left out: only the latency table could give it.
        """
        reached = self.only(kept).remaining(kept)
        recorded = budget.reached
        if all(math.isclose(recorded.get(name, math.nan), share, rel_tol=ROUNDING) for name, share in reached.items()):
            return budget
        return Budget(asked=budget.asked, reached=reached)


def importance_lost(kept: Mapping[str, Sequence[int]], importance: Mapping[str, Vector32]) -> float:
    """Sum of the importances of all units that a mask removes."""
    return float(
        sum(v.astype(np.float64).sum() - v.astype(np.float64)[list(kept[n])].sum() for n, v in importance.items())
    )
