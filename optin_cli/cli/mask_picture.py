"""A small picture of a mask in text: what stays in each block, as wide as the terminal allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from optin_cli.artifacts.mask import Mask
from optin_cli.cli.layers import Place, span, stretches
from optin_cli.cli.tables import reached_words
from optin_cli.options.scoring import UNITS

EIGHTHS = " ▏▎▍▌▋▊▉█"
STYLES = ((24, 16), (24, 8), (12, 4), (0, 4), (0, 0))
"""Most units that are drawn as one sign each, and letters of a bar of more units: from wide to narrow."""


@dataclass(frozen=True)
class _Part:
    """What stays of one or several groups of a kind, and which units of a group alone."""

    kind: str
    left: int
    units: int
    kept: frozenset[int] | None

    def drawn(self, signs: int, width: int) -> str:
        """The kind, a sign a unit or a bar, and the counts."""
        counts = f"{self.left:>{len(str(self.units))},}/{self.units:,}"
        if self.kept is not None and self.units <= signs:
            picture = "".join("●" if unit in self.kept else "○" for unit in range(self.units))
        else:
            eighths = round(8 * width * self.left / self.units)
            bar = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
            picture = bar.ljust(width, "·")
        return " ".join(filter(None, (self.kind, picture, counts)))


def picture(mask: Mask, kinds: Mapping[str, str], *, width: int, every: bool = False) -> str:
    """What a mask keeps: a line for each block, or in deep models for some neighbouring blocks together.

    Of tokens, those that leave the block of the ones that may merge. kinds: by group name. width: of the terminal;
    where the narrowest picture is wider, lines are wrapped by the terminal. every: a line for every block.
    """
    rows: dict[str, list[_Part]] = {}
    for names in [[name] for name in mask.groups] if every else stretches(mask.groups):
        rows.setdefault(_block(names), []).append(_part(mask, names, kinds))
    lines = [reached_words(mask.budget.reached)]
    column = max(map(cell_len, rows), default=0)
    for signs, bar in STYLES:
        drawn = [[part.drawn(signs, bar) for part in parts] for parts in rows.values()]
        widths = _widths(drawn)
        if column + sum(2 + each for each in widths) <= width:
            break
    for block, parts in zip(rows, drawn, strict=True):
        padded = "  ".join(f"{part:<{each}}" for part, each in zip(parts, widths, strict=False))
        lines.append(f"{block:<{column}}  {padded}".rstrip())
    return "\n".join(lines)


def _block(names: Sequence[str]) -> str:
    """What the line of groups is called: their block, or the stretch of blocks."""
    if len(names) == 1:
        return names[0].rpartition(".")[0]
    return span(names).removesuffix(f" {Place.of(names[0]).kind}")


def _part(mask: Mask, names: Sequence[str], kinds: Mapping[str, str]) -> _Part:
    groups = [mask.groups[name] for name in names]
    kind, units = Place.of(names[0]).kind, sum(group.units for group in groups)
    if kinds[names[-1]] == UNITS["tokens"]:
        return _Part(kind, _tokens_after(mask, names[-1], kinds), groups[-1].units, None)
    kept = frozenset(groups[0].kept) if len(groups) == 1 else None
    return _Part(kind, sum(len(group.kept) for group in groups), units, kept)


def _tokens_after(mask: Mask, last: str, kinds: Mapping[str, str]) -> int:
    """Tokens that leave the block of a group, of those that may merge."""
    left: int | None = None
    for name, group in mask.groups.items():
        if kinds[name] == UNITS["tokens"]:
            left = -(-(group.units if left is None else left) * len(group.kept) // group.units)
        if name == last:
            break
    return left or 0


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Of each column of parts, the widest."""
    most = max(map(len, rows), default=0)
    return [max(cell_len(row[number]) for row in rows if len(row) > number) for number in range(most)]
