"""Time and memory of `optin score` against samples, width, depth and processes, and what larger models should take.

    python tests/benchmarks/scale.py [--samples 64,256,1024] [--widths 256,512] [--depths 2,4,8] [--processes 1,2]
                                     [--tokens 128] [--probes 4] [--output scale.json]

Random Llama models are made on the spot: width w has w / 64 heads and 8 w / 3 neurons. One of the numbers varies at a
time, the others being the first of their lists (processes: of --processes with the most samples). Every run has a fresh
process of one thread, or several under torchrun; its time is that of `score` with model and libraries loaded, in passes
over the data and in removal curves; its memory is the most that any of its processes held. Exponents are slopes of
straight lines through logarithms. Then a model of the work, whose rates were measured here, is asked about 7 B and 70 B
on one H100, with its assumptions. Prints Markdown tables on stderr and JSON on stdout. The defaults take about a minute
a gigaflop; `--samples 16,32 --widths 128 --depths 1,2 --tokens 32` takes one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from optin_cli.progress import Silent

WORDS = 2000
"""Words of the made-up language, which is the models' vocabulary."""
BATCH = 8
HEAD = 64
H100 = {"bfloat16 FLOP/s": 989e12 * 0.4, "float32 FLOP/s": 67e12 * 0.5, "float64 FLOP/s": 67e12 * 0.3}
"""Peaks of an H100 SXM times the shares that are taken to be reached."""
STEP_SECONDS = 300e-6
"""What one removal of a curve takes beside its arithmetic: about 30 launches of kernels and one synchronisation."""
LARGE = {
    "7 B": {"width": 4096, "depth": 32, "columns": 11008, "parameters": 6.7e9},
    "70 B": {"width": 8192, "depth": 80, "columns": 28672, "parameters": 69e9},
}
LARGE_TOKENS = (128, 2048)
"""Windows, and tokens of each."""


@dataclass(frozen=True)
class Case:
    """One run."""

    samples: int
    width: int
    depth: int
    processes: int
    tokens: int
    probes: int

    @property
    def columns(self) -> int:
        """Neurons of a block."""
        return max(64, round(8 * self.width / 3 / 64) * 64)

    @property
    def parameters(self) -> float:
        """Of all blocks."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.columns)


def work(shape: Mapping[str, float], tokens: float, probes: int) -> dict[str, float]:
    """FLOPs of a run, and steps of its curves. shape: width, depth, columns and parameters of a model."""
    width, columns, depth = shape["width"], shape["columns"], shape["depth"]
    forward = 2 * shape["parameters"] * tokens
    return {
        "forward": forward,
        "backward": probes * forward,
        "second moments": depth * tokens * (width**2 + columns**2 + probes * 2 * width**2),
        "removal curves": depth * 4 * (width**3 + columns**3),
        "steps": depth * (columns + width / HEAD),
    }


def make_model(folder: Path, case: Case) -> None:
    """A random Llama that continues a text, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(WORDS - 3))]
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=case.width,
        num_hidden_layers=case.depth,
        num_attention_heads=case.width // HEAD,
        num_key_value_heads=case.width // HEAD,
        intermediate_size=case.columns,
        max_position_embeddings=max(case.tokens, 128),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


def make_text(path: Path, case: Case) -> None:
    """Running text of as many windows as there are samples."""
    drawn = np.random.default_rng(0).integers(0, WORDS - 3, case.samples * case.tokens + case.tokens)
    path.write_text(" ".join(f"w{number}" for number in drawn), encoding="utf-8")


class Stages(Silent):
    """Progress that notes when removal curves begin."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.curves: float | None = None

    def update(self, done: float, total: float, what: str) -> None:
        del done, total
        if self.curves is None and what.startswith("order of"):
            self.curves = time.perf_counter()


def measure(folder: Path, case: Case) -> None:
    """Score, in this process and those beside it, and print what it took as JSON."""
    import torch

    from optin_cli.checkpoints.checkpoint import load
    from optin_cli.data.spec import DataSpec
    from optin_cli.options.scoring import ScoreOptions
    from optin_cli.processes.launch import joined
    from optin_cli.processes.processes import ALONE
    from optin_cli.scoring.score import score

    torch.set_num_threads(1)
    with joined() if case.processes > 1 else contextlib.nullcontext(ALONE) as processes:
        checkpoint = replace(load(folder, device="cpu"), processes=processes)
        options = ScoreOptions(
            samples=case.samples,
            probes=case.probes,
            batch_size=BATCH,
            max_length=case.tokens,
            units=("heads", "neurons"),
        )
        before = peak()
        stages = Stages()
        found = score(checkpoint, DataSpec(path=folder / "text.txt"), options, seq_len=case.tokens, progress=stages)
        done = time.perf_counter()
        most = max(processes.gather([peak()]))
        if processes.leads:
            curves = done if stages.curves is None else stages.curves
            times = {"seconds": done - stages.begun, "passes": curves - stages.begun, "curves": done - curves}
            kept = min(group.samples for group in found.header.groups.values())
            print(json.dumps({**times, "loaded_mb": before, "peak_mb": most, "samples": kept}))


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(case: Case) -> dict[str, Any]:
    """What a run takes, in fresh processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, case)
        make_text(folder / "text.txt", case)
        launcher = [sys.executable]
        if case.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
        line = [*launcher, __file__, "--measure", name, json.dumps(asdict(case))]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return {**asdict(case), **json.loads(done.stdout.splitlines()[-1])}


def exponent(rows: Sequence[Mapping[str, float]], what: str, against: str) -> float | None:
    """Slope of log(what) over log(against); None of fewer than two rows."""
    if len(rows) < 2:
        return None
    points = [[np.log(row[name]) for row in rows] for name in (against, what)]
    return float(np.polyfit(points[0], points[1], 1)[0])


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """FLOP/s of passes and of curves on this machine, in one process."""
    done = {"passes": 0.0, "curves": 0.0}
    for row in rows:
        case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
        shape = {"width": case.width, "depth": case.depth, "columns": case.columns, "parameters": case.parameters}
        flops = work(shape, case.samples * case.tokens, case.probes)
        done["curves"] += flops.pop("removal curves")
        del flops["steps"]
        done["passes"] += sum(flops.values())
    return {name: flops / sum(row[name] for row in rows) for name, flops in done.items()}


def project(probes: int) -> dict[str, dict[str, float]]:
    """Seconds of each kind of work on one H100, by model."""
    found = {}
    for name, shape in LARGE.items():
        flops = work(shape, LARGE_TOKENS[0] * LARGE_TOKENS[1], probes)
        arithmetic, steps = H100["float64 FLOP/s"], flops.pop("steps") * STEP_SECONDS
        seconds = {each: flops[each] / H100["bfloat16 FLOP/s"] for each in ("forward", "backward")}
        seconds["second moments"] = flops["second moments"] / H100["float32 FLOP/s"]
        seconds["removal curves"] = flops["removal curves"] / arithmetic + steps
        found[name] = {**seconds, "whole": sum(seconds.values())}
    return found


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    made = Table(title=title, box=box.MARKDOWN)
    for heading in headings:
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    return made


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def series(arguments: argparse.Namespace) -> dict[str, list[Case]]:
    """The runs in which each number varies."""
    first = Case(
        arguments.samples[0],
        arguments.widths[0],
        arguments.depths[0],
        arguments.processes[0],
        arguments.tokens,
        arguments.probes,
    )
    most = replace(first, samples=arguments.samples[-1])
    return {
        "samples": [replace(first, samples=each) for each in arguments.samples],
        "width": [replace(first, width=each) for each in arguments.widths],
        "depth": [replace(first, depth=each) for each in arguments.depths],
        "processes": [replace(most, processes=each) for each in arguments.processes],
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Case(**json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=numbers, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--widths", type=numbers, default=[256, 512, 1024])
    parser.add_argument("--depths", type=numbers, default=[2, 4, 8])
    parser.add_argument("--processes", type=numbers, default=[1, 2])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    talk, found, known = Console(stderr=True, width=140), {}, {}
    for name, cases in series(arguments).items():
        for case in cases:
            known[case] = known.get(case) or run(case)
        rows = found[name] = [known[case] for case in cases]
        columns = [name, "seconds", "passes", "curves", "peak_mb"]
        talk.print(table(f"against {name}", columns, [[row[column] for column in columns] for row in rows]))
        slopes = {what: exponent(rows, what, name) for what in ("seconds", "passes", "peak_mb")}
        if len(rows) > 1:
            talk.print("exponents: " + ", ".join(f"{what} {slope:.3f}" for what, slope in slopes.items()))
    alone = [row for row in known.values() if row["processes"] == 1]
    here, large = rates(alone), project(arguments.probes)
    talk.print(f"here, one thread: {here['passes'] / 1e9:.1f} GFLOP/s in passes, {here['curves'] / 1e9:.1f} in curves")
    kinds = [*next(iter(large.values()))]
    talk.print(
        table(
            f"projected seconds, {LARGE_TOKENS[0]} x {LARGE_TOKENS[1]:,} tokens, {arguments.probes} probes, one H100",
            ["model", *kinds],
            [[name, *(seconds[kind] for kind in kinds)] for name, seconds in large.items()],
        )
    )
    assumed = ", ".join(f"{rate / 1e12:.0f} T {name}" for name, rate in H100.items())
    talk.print(
        f"assumed: {assumed}; a backward pass costs as much as a forward pass, since weights get no gradients; second "
        f"moments in float32; curves in float64, {STEP_SECONDS * 1e6:.0f} us a removal besides. 70 B does not fit one "
        "card: reading its blocks from disk, twice, comes on top."
    )
    result = {
        "runs": found,
        "exponents": {
            name: {what: exponent(rows, what, name) for what in ("seconds", "passes", "peak_mb")}
            for name, rows in found.items()
        },
        "rates": here,
        "projection": {"seconds": large, "rates": H100, "step_seconds": STEP_SECONDS, "tokens": LARGE_TOKENS},
    }
    text = json.dumps(result, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
