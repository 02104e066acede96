"""The layouts of a mask, and names of groups in; which groups a uniform layout cuts alike out. No torch."""

from __future__ import annotations

from typing import Literal, get_args

Layout = Literal["ragged", "uniform"]
"""Every block its own number of units, or all blocks of a stack the same number of each kind."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def layout_class(group: str, block: str) -> str:
    """What the groups that a uniform layout cuts alike have in common: the stack, and the group's name in its block."""
    return f"{block.partition('.')[0]}.{group.removeprefix(f'{block}.')}"
