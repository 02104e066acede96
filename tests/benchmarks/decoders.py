"""What each recipe leaves of a small decoder: perplexity at shares of the blocks' MACs, without training.

    python tests/benchmarks/decoders.py --checkpoint DIR [--data DIR] [--output DIR] [--shares 0.9,0.8,0.7,0.5]

Calibrates on windows of WikiText-2's validation part, and evaluates on windows of its test part. Shares are of what the
blocks compute; the embeddings and the head stay whole. Every finished point is kept in the output folder, and the
same command, or one with more recipes or shares, goes on from there. Prints a Markdown table on stderr and JSON on
stdout. A checkpoint of GGUF is made a folder first, by from_pretrained(DIR, gguf_file=FILE) and save_pretrained.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import optin_cli
from optin_cli.artifacts.costs import BLOCK, Profile
from optin_cli.data.spec import DataSpec
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions

SHARED = Path(__file__).resolve().parents[3] / "shared"
RECIPES = ("optin", "slimgpt", "flap", "wanda", "magnitude")


def share_of_model(profile: Profile, share: float) -> float:
    """The share of all MACs that a share of the blocks' comes to, rounded up to four places."""
    blocks = sum(group.units * group.unit_macs for group in profile.groups.values() if group.kind == BLOCK)
    kept = (profile.totals.macs - (1 - share) * blocks) / profile.totals.macs
    return round(kept + 5e-5, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, default=SHARED / "data/wikitext2")
    parser.add_argument("--output", type=Path, default=Path("decoders"))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--shares", default="0.9,0.8,0.7,0.5")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument("--eval-samples", type=int, default=64, help="test windows")
    asked = parser.parse_args()
    if not (asked.data / "wiki.test.tokens").is_file():
        sys.exit(f"Skipped: needs WikiText-2 ({asked.data}).")
    profile = optin_cli.profile(asked.checkpoint)
    shares = [float(share) for share in asked.shares.split(",")]
    keep = {share: share_of_model(profile, share) for share in shares}
    names = tuple(asked.recipes.split(","))
    sweep = optin_cli.sweep(
        asked.checkpoint,
        "wikitext2",
        DataSpec(str(asked.data / "wiki.valid.tokens")),
        asked.output,
        SweepOptions(
            recipes=names,
            keep_flops=tuple(keep.values()),
            scoring=ScoreOptions(samples=asked.samples, probes=asked.probes),
            evaluation=EvalOptions(samples=asked.eval_samples, latency_runs=0),
        ),
        data=asked.data / "wiki.test.tokens",
        resume=True,
        report=lambda point: print(
            f"{point.recipe} {point.asked:g}: {point.value:.2f} (rise {point.drop:+.1%}), "
            f"{point.prepare_seconds:.0f} s + {point.prune_seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        ),
    )
    console = Console(stderr=True, width=120)
    whole = sweep.baseline
    console.print(
        f"\n{Path(asked.checkpoint).name}: perplexity {whole.value:.2f} ± {whole.standard_error:.2f} on "
        f"{asked.eval_samples} test windows, {asked.samples} calibration windows; CPU {platform.machine()}, "
        f"{torch.get_num_threads()} threads\n"
    )
    table = Table(box=box.MARKDOWN)
    for column in ("recipe", *(f"{share:g} of the blocks" for share in shares), "prepare s", "prune s"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name in names:
        points = {point.asked: point for point in sweep.points if point.recipe == name}
        mine = [points[keep[share]] for share in shares]
        cells = [f"{point.value:.2f} ({point.drop:+.1%})" for point in mine]
        times = [f"{mine[0].prepare_seconds:.0f}", f"{max(point.prune_seconds for point in mine):.0f}"]
        table.add_row(name, *cells, *times)
    console.print(table)
    print(json.dumps({"shares of the blocks": keep, "sweep": json.loads(sweep.dump())}, indent=2))


if __name__ == "__main__":
    main()
