"""How well and how fast the sketch estimates what exact removal measures, on a real checkpoint.

    python tests/benchmarks/fidelity.py [--checkpoint DIR] [--data FILE]

Scores every unit by sketch, and a random choice of neurons and every head by exact removal, on the same
samples; then times, in the same run, sketch for all units, exact removal with replayed prefixes, and the plain
loop of one full forward pass a unit. Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from optin_cli.checkpoints.batching import BatchOptions
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.batch import Batch
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.options.scoring import ScoreOptions
from optin_cli.profiling.devices import describe_device
from optin_cli.scoring.exact import exact_batch
from optin_cli.scoring.sketch import Objective, sketch_batch

SHARED = Path(__file__).resolve().parents[3] / "shared"
DEFAULTS = ScoreOptions()


def means(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean over samples of per-sample importances, by group."""
    return {name: torch.cat([p[name] for p in parts]).mean(dim=0) for name in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(SHARED / "checkpoints/minilm-sst2"))
    parser.add_argument("--data", default=str(SHARED / "data/sst2/train.jsonl"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--neurons", type=int, default=360)
    parser.add_argument("--output-weight", type=float, default=DEFAULTS.output_weight)
    parser.add_argument("--temperature", type=float, default=DEFAULTS.temperature)
    options = parser.parse_args()
    if not Path(options.checkpoint).is_dir() or not Path(options.data).is_file():
        sys.exit(f"Skipped: needs a checkpoint ({options.checkpoint}) and texts ({options.data}).")

    checkpoint = load_checkpoint(options.checkpoint, device="cpu")
    model, structure = checkpoint.model, checkpoint.structure
    samples = load_samples(DataSpec(options.data, limit=options.samples))
    batches = checkpoint.input.batches(samples, BatchOptions(32, 128))
    neuron_groups = [g for g in structure.groups if g.kind == "neuron"]
    head_groups = [g for g in structure.groups if g.kind == "head"]
    generator = torch.Generator().manual_seed(0)
    share = -(-options.neurons // len(neuron_groups))
    chosen = {g.name: sorted(torch.randperm(g.units, generator=generator)[:share].tolist()) for g in neuron_groups}
    chosen |= {g.name: list(range(g.units)) for g in head_groups}
    units = sum(g.units for g in structure.groups)

    def exact(groups: list, batch: Batch, objective: Objective, *, replay: bool = True, few: int | None = None) -> dict:
        picked = {name: ids[:few] for name, ids in chosen.items()}
        chosen_groups, rows = structure.with_groups(groups), 256 if replay else None
        return exact_batch(model, chosen_groups, batch, objective, rows=rows, units=picked)

    report: dict = {
        "model": checkpoint.name,
        "data": samples.name,
        "samples": len(samples.texts),
        "probes": options.probes,
        "neurons": share * len(neuron_groups),
        "device": describe_device(checkpoint.device),
        "threads": torch.get_num_threads(),
        "spearman": {},
    }
    for name, objective in {
        "manifold": Objective(1.0, 0.0, options.temperature),
        "output": Objective(0.0, 1.0, options.temperature),
        "trajectory": Objective(1.0, options.output_weight, options.temperature),
    }.items():
        start = time.perf_counter()
        sketched = means([sketch_batch(model, structure, b, objective, probes=options.probes, seed=0) for b in batches])
        sketch_seconds = time.perf_counter() - start
        measured = means([exact([*neuron_groups, *head_groups], b, objective) for b in batches])
        report["spearman"][name] = {
            kind: float(
                spearmanr(
                    torch.cat([sketched[g.name][chosen[g.name]] for g in groups]),
                    torch.cat([measured[g.name] for g in groups]),
                ).statistic
            )
            for kind, groups in (("neuron", neuron_groups), ("head", head_groups))
        }

    # Speed: mean seconds a unit over a few neurons and heads of every layer, times all units of that kind.
    def seconds_for_all(*, replay: bool, few: int) -> float:
        total = 0.0
        for groups in (neuron_groups, head_groups):
            for group in groups:
                start = time.perf_counter()
                for batch in batches:
                    exact([group], batch, objective, replay=replay, few=few)
                total += (time.perf_counter() - start) / min(few, len(chosen[group.name])) * group.units
        return total

    replayed, plain = seconds_for_all(replay=True, few=8), seconds_for_all(replay=False, few=2)
    report["seconds"] = {"sketch": sketch_seconds, "exact, prefixes replayed": replayed, "one forward a unit": plain}
    report["speed_ratio"] = {
        "exact, prefixes replayed": replayed / sketch_seconds,
        "one forward a unit": plain / sketch_seconds,
    }

    console = Console(stderr=True)
    table = Table(title=f"{report['model']}, {report['samples']} samples, {units:,} units, {options.probes} probes")
    for heading in ("objective", "Spearman, neurons", "Spearman, heads"):
        table.add_column(heading)
    for name, values in report["spearman"].items():
        table.add_row(name, f"{values['neuron']:.4f}", f"{values['head']:.4f}")
    console.print(table)
    speed = Table(title="all units, seconds (exact ones extrapolated)")
    for heading in ("estimator", "seconds", "sketch is faster by"):
        speed.add_column(heading)
    for name, seconds in report["seconds"].items():
        speed.add_row(name, f"{seconds:,.1f}", f"{seconds / sketch_seconds:,.0f}x")
    console.print(speed)
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
