"""Options of the search for a mask."""

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

from optin_cli.errors import UsageError
from optin_cli.options.declare import BUDGET, OPTION, RESEARCH, Checked, option

Algorithm = Literal["exact", "optin"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
Layout = Literal["ragged", "uniform", "deci"]
"""Every block its own number of units, all blocks of a stack the same number of each kind, or what a config of DeciLM
states: the same heads, and neurons in multiples of 256."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class SearchOptions(Checked):
    """Options of a search: the algorithm, and which widths a mask may have.

    min_heads, min_neurons: of every group of that kind. protect: groups, by names or patterns with *, that stay whole.
    """

    algorithm: Algorithm = option(
        "exact",
        "--algorithm",
        "exact: an integer program; paper: the search of the OPTIN paper.",
        choices=ALGORITHMS,
        spoken=MappingProxyType({"paper": "optin"}),
        panel=RESEARCH,
    )
    round_to: int = option(1, "--round-to", "Kept widths come in multiples of this (8, 16, 32).", low=1)
    min_heads: int = option(0, "--min-heads", "Fewest heads left in a layer.", low=0, recorded="head")
    min_neurons: int = option(0, "--min-neurons", "Fewest neurons left in a layer.", low=0, recorded="neuron")
    protect: tuple[str, ...] = option(
        (), "--protect", "Group that stays whole; encoder.0.* works; repeatable.", metavar="GROUP", repeated=True
    )
    layout: Layout = option(
        "ragged",
        "--layout",
        "per-layer: every layer its own widths. uniform: the same number of units in every layer, so that the stock "
        "class loads the result. deci: the same heads, and neurons in multiples of 256, as vLLM's DeciLMForCausalLM "
        "takes them.",
        choices=LAYOUTS,
        spoken=MappingProxyType({"per-layer": "ragged"}),
    )


@dataclass(frozen=True)
class BudgetOptions:
    """Budgets of one or several masks, each a share of the whole model."""

    panel: ClassVar[str] = BUDGET
    macs: tuple[float, ...] | None = option(
        None,
        "--keep-flops",
        "Share of the model's compute (MACs) to keep: 0.5; or several: 0.6,0.5,0.4.",
        metavar="SHARE[,…]",
    )
    parameters: tuple[float, ...] | None = option(
        None, "--keep-params", "Share of the model's parameters to keep.", metavar="SHARE[,…]"
    )
    latency: tuple[float, ...] | None = option(
        None, "--keep-latency", "Share of the measured time to keep; with --latency-table.", metavar="SHARE[,…]"
    )

    def each(self) -> list[dict[str, float]]:
        """The budgets of each mask by name, single shares for all (UsageError if there are none, or lengths differ)."""
        given = {item.name: (item.metadata[OPTION].flag, getattr(self, item.name)) for item in fields(self)}
        given = {name: (flag, shares) for name, (flag, shares) in given.items() if shares is not None}
        if not given:
            raise UsageError("No budget was given.", hint="Pass --keep-flops 0.5, --keep-params 0.5 or both.")
        longest, most = max(given.values(), key=lambda pair: len(pair[1]))
        for flag, shares in given.values():
            if len(shares) not in (1, len(most)):
                raise UsageError(f"{longest} lists {len(most)} budgets and {flag} {len(shares)}.")
        return [
            {name: shares[number % len(shares)] for name, (_, shares) in given.items()} for number in range(len(most))
        ]
