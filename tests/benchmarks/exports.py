"""Exported files beside the checkpoint they came from: accuracy, and latency small/original in each runtime.

    python tests/benchmarks/exports.py SMALL [--original CKPT] [--data FILE] [--task sst2] [--runs 50] [--threads N]

Exports the cut checkpoint and the original to every target whose packages are installed, evaluates the cut one as
it is and in each runtime, then times both in each runtime, their runs interleaved, at batch 1 and 32 and 64 tokens.
Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import optin_cli
from optin_cli.artifacts.base import timed_on
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.inputs import random_inputs
from optin_cli.errors import OptinError
from optin_cli.exporting.load import load_evaluated
from optin_cli.exporting.registry import TARGETS
from optin_cli.options.evaluation import EvalOptions
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import forward_latency

SHARED = Path(__file__).resolve().parents[3] / "shared"
BATCHES, TOKENS, WARMUP = (1, 32), 64, 5
EAGER = "checkpoint"


def open_all(small: Path, original: Path, folder: Path) -> dict[str, tuple[Checkpoint, Checkpoint]]:
    """Both models in every runtime: the checkpoints themselves, and their exports."""
    opened = {EAGER: (load_checkpoint(small, device="cpu"), load_checkpoint(original, device="cpu"))}
    for target in TARGETS:
        files = []
        for name, source in zip(("small", "original"), opened[EAGER], strict=True):
            try:
                record = optin_cli.export(source, target, folder / f"{name}-{target}")
            except OptinError as error:
                print(f"Left out {target}: {error.message}", file=sys.stderr)
                break
            print(f"{name} {target}: differs by {record.certificate.difference:.2g}", file=sys.stderr, flush=True)
            files.append(load_evaluated(folder / f"{name}-{target}" / next(iter(record.files))))
        else:
            opened[target] = files[0], files[1]
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("--original", type=Path, default=SHARED / "checkpoints/minilm-sst2")
    parser.add_argument("--data", type=Path, default=SHARED / "data/sst2/validation.jsonl")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_all(asked.small, asked.original, Path(scratch))
        for target, (mine, _) in opened.items():
            found = optin_cli.evaluate(mine, asked.task, data=asked.data, options=EvalOptions(latency_runs=0))
            rows[target] = {"metrics": found.metrics, "standard_error": found.standard_error, "samples": found.samples}
        for target, pair in opened.items():
            # One runtime at a time: the idle threads of one spin for a while and slow down the next one's.
            for batch in BATCHES:
                workload = pair[0].input.workload(TOKENS, batch)
                inputs = random_inputs([m.input for m in pair], workload)
                models = [m.model for m in pair]
                times = forward_latency(models, inputs, workload, runs=asked.runs, warmup=WARMUP)
                small, original = (each.median_ms for each in times)
                rows[target][f"batch {batch}"] = {"small_ms": small, "original_ms": original, "ratio": small / original}
    runtimes = {t: "torch" if m.recorded is None else m.recorded.runtime for t, (m, _) in opened.items()}
    device = timed_on(describe_device(torch.device("cpu")), asked.threads)
    first = rows[EAGER]
    table = Table(
        title=f"{asked.small.name} against {asked.original.name}: {asked.data.name}, {first['samples']} samples",
        caption=f"{device}; medians of {asked.runs} interleaved runs, {TOKENS} tokens: ms small / original = ratio",
    )
    for heading in ("file", "runtime", next(iter(first["metrics"])), *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(heading, justify="left" if heading in ("file", "runtime") else "right")
    for target, row in rows.items():
        cells = [row[f"batch {batch}"] for batch in BATCHES]
        table.add_row(
            target,
            runtimes[target],
            f"{next(iter(row['metrics'].values())):.4f}",
            *(f"{c['small_ms']:.2f} / {c['original_ms']:.2f} = {c['ratio']:.3f}" for c in cells),
        )
    Console(stderr=True, width=150).print(table)
    print(json.dumps({"device": device, "tokens": TOKENS, "runs": asked.runs, "runtimes": runtimes, **rows}, indent=2))


if __name__ == "__main__":
    main()
