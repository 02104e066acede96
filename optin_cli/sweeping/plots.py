"""Plot the metric of a sweep against MACs in plain text, for a terminal."""

from optin_cli.artifacts.sweep import Sweep, SweepPoint

PICTURE = "sweep.svg"
SIGNS = "●▲■◆▼○△□"
WIDTH, HEIGHT = 60, 14


def by_recipe(sweep: Sweep) -> dict[str, list[SweepPoint]]:
    """Points of each recipe, from few MACs to many."""
    names = dict.fromkeys(point.recipe for point in sweep.points)
    ordered = sorted(sweep.points, key=lambda point: point.macs_ratio)
    return {name: [point for point in ordered if point.recipe == name] for name in names}


def draw_text(sweep: Sweep) -> str:
    """The metric over the share of MACs in plain characters, for a terminal."""
    original = sweep.baseline.value
    values = [original, *(point.value for point in sweep.points)]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    grid = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]

    def row_of(value: float) -> int:
        return round(HEIGHT * (high - value) / spread)

    grid[row_of(original)] = ["┄"] * (WIDTH + 1)
    recipes = by_recipe(sweep)
    for sign, points in reversed([*zip(_signs(len(recipes)), recipes.values(), strict=True)]):
        for point in points:
            grid[row_of(point.value)][min(WIDTH, round(WIDTH * point.macs_ratio))] = sign
    ticks = {row_of(high): high, row_of(low): low, row_of(original): original}
    title = f"{sweep.inputs['checkpoint'].name} on {sweep.task} ({sweep.split}, {sweep.samples:,} samples)"
    lines = [f"{sweep.metric}, {title}"]
    lines += [
        f"{f'{ticks[number]:.4f}' if number in ticks else '':>8} │{''.join(row).rstrip()}"
        for number, row in enumerate(grid)
    ]
    lines.append(" " * 9 + "└" + "─" * (WIDTH + 1))
    axis = "".join(f"{share:<{WIDTH // 4}g}" for share in (0, 0.25, 0.5, 0.75)) + "1"
    lines.append(" " * 10 + axis + "  share of the MACs")
    legend = [f"{sign} {name}" for sign, name in zip(_signs(len(recipes)), recipes, strict=True)]
    lines.append(" " * 10 + "  ".join([*legend, "┄ original"]))
    return "\n".join(lines)


def _signs(count: int) -> list[str]:
    return [SIGNS[number % len(SIGNS)] for number in range(count)]
