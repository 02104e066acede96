"""Whether two runs of every stage give the same bytes, with one thread and with two, and what differs between those.

    python tests/benchmarks/determinism.py [CHECKPOINT --calib PATH --task NAME --data PATH] [--samples 64]
                                           [--threads 1,2] [--output determinism.json]

Without arguments the checkpoint and the data are those of `optin demo`. Every command runs in a fresh process with a
seed of its own for hashes. For each number of threads the whole pipeline runs twice in two folders, whose files are
compared byte by byte, less the seconds that a sweep measures; then the first folders of two numbers of threads are. Of
JSON files that differ, and of headers of scores, the keys are named with their largest relative difference; of tensors
too. Prints a Markdown table on stderr and JSON on stdout; the exit status is 1 if two runs alike differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "optin_cli" / "demo"
SECONDS = ("prepare_seconds", "prune_seconds")


def stages(options: argparse.Namespace) -> dict[str, list[str]]:
    """Commands by name; each writes below the working folder."""
    source, count = str(options.checkpoint), str(options.samples)
    data = ["--task", options.task, "--data", str(options.data), "--samples", count, "--latency-runs", "0"]
    calib, scored = ["--calib", str(options.calib)], ["scores.safetensors", "--keep-flops"]
    return {
        "profile": ["profile", source, "-o", "profile.json"],
        "score": ["score", source, *calib, "--samples", count, "-o", "scores.safetensors"],
        "score, fisher": ["score", source, *calib, "--criterion", "fisher", "--samples", count, "-o", "f.safetensors"],
        "search": ["search", *scored, "0.5", "-o", "mask.json"],
        "search, uniform": [
            "search",
            "scores.safetensors",
            "--keep-flops",
            "0.7",
            "--layout",
            "uniform",
            "-o",
            "u.json",
        ],
        "prune": ["prune", source, "--mask", "mask.json", *calib, "--samples", count, "-o", "small"],
        "eval": ["eval", "small", *data, "--against", source, "-o", "small.eval.json"],
        "export onnx": ["export", "small", "--to", "onnx", "-o", "onnx"],
        "export torch": ["export", "small", "--to", "torch-export", "-o", "torch"],
        "trim": ["trim", source, *calib, "-o", "trimmed"],
        "report": ["report", "small", "--eval", "small.eval.json", "-o", "report.html"],
        "sweep": [
            *("sweep", source, *calib, "--samples", count, "--task", options.task, "--data", str(options.data)),
            *("--eval-samples", count, "--latency-runs", "0", "--keep-flops", "0.7", "-o", "sweep"),
        ],
        "diff": ["diff", "mask.json", "u.json", "--json"],
        "inspect": ["inspect", "scores.safetensors", "--json"],
    }


def run(commands: dict[str, list[str]], folder: Path, threads: int, seed: int) -> dict[str, dict[str, bytes]]:
    """Run all stages in a folder; what each wrote, by path, and printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    found, known = {}, set[str]()
    for name, words in commands.items():
        line = [sys.executable, "-m", "optin_cli", *words]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, check=False)
        if done.returncode != 0:
            found[name] = {"failed": done.stderr[-300:]}
            print(f"{name} fails: {done.stderr.decode()[-300:]}", file=sys.stderr)
            continue
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        found[name] = {"stdout": done.stdout} | {key: content(path) for key, path in files.items() if key not in known}
        known |= files.keys()
    return found


def content(path: Path) -> bytes:
    """A file's bytes; of a sweep's record without measured seconds."""
    if path.name == "sweep.json":
        raw = json.loads(path.read_bytes())
        for point in raw["points"]:
            for key in SECONDS:
                point.pop(key, None)
        return json.dumps(raw).encode()
    return path.read_bytes()


def differences(one: bytes, other: bytes, name: str) -> str:
    """Where two files differ, in words."""
    if name.endswith(".json") or one[:1] == b"{":
        a, b = (dict(leaves(json.loads(text))) for text in (one, other))
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return ", ".join(f"{key} ({relative(a.get(key), b.get(key))})" for key in keys[:4]) + "…" * (len(keys) > 4)
    if name.endswith(".safetensors"):
        with tempfile.TemporaryDirectory() as scratch:
            paths = [Path(scratch) / "one", Path(scratch) / "other"]
            for path, text in zip(paths, (one, other), strict=True):
                path.write_bytes(text)
            a, b = map(load_file, paths)
        keys = [key for key in {**a, **b} if key not in a or key not in b or not np.array_equal(a[key], b[key])]
        most = max((relative(a[key], b[key]) for key in keys if key in a and key in b), default="")
        return f"{len(keys)} of {len(a)} tensors ({most})" if keys else "its header"
    return f"{sum(x != y for x, y in zip(one, other, strict=False))} of {len(one)} bytes"


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document by the keys that lead to it."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, node


def relative(one: Any, other: Any) -> str:
    """The largest relative difference of two numbers or tensors."""
    try:
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = max(float(np.abs(a).max()), float(np.abs(b).max()), 1e-300)
        return f"{float(np.abs(a - b).max()) / scale:.1e} relative"
    except (TypeError, ValueError):
        return "another value"


def compare(one: dict[str, dict[str, bytes]], other: dict[str, dict[str, bytes]]) -> dict[str, dict[str, str]]:
    """Files that differ, and where, by stage."""
    found = {}
    for stage, files in one.items():
        names = [name for name in {**files, **other[stage]} if files.get(name) != other[stage].get(name)]
        found[stage] = {name: differences(files.get(name, b""), other[stage].get(name, b""), name) for name in names}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=DEMO / "checkpoint")
    parser.add_argument("--calib", type=Path, default=DEMO / "data" / "train.jsonl")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", type=Path, default=DEMO / "data" / "validation.jsonl")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--output", type=Path, help="file for the JSON too")
    options = parser.parse_args()
    for name in ("checkpoint", "calib", "data"):
        setattr(options, name, getattr(options, name).resolve())
    counts, commands = [int(part) for part in options.threads.split(",")], stages(options)
    runs: dict[int, list[dict[str, dict[str, bytes]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for threads in counts:
            for seed in (1, 2):
                folder = Path(scratch) / f"{threads}-{seed}" / "work"
                folder.mkdir(parents=True)
                runs.setdefault(threads, []).append(run(commands, folder, threads, seed))
                print(f"{threads} thread(s), run {seed}: done", file=sys.stderr, flush=True)
    alike = {threads: compare(*pair) for threads, pair in runs.items()}
    apart = {f"{counts[0]} and {more}": compare(runs[counts[0]][0], runs[more][0]) for more in counts[1:]}
    table = Table(box=box.MARKDOWN)
    for name in (
        "stage",
        *(f"two runs, {threads} thread(s)" for threads in counts),
        *(f"{key} threads" for key in apart),
    ):
        table.add_column(name)
    for stage in commands:
        cells = [found[stage] for found in (*alike.values(), *apart.values())]
        table.add_row(stage, *("; ".join(f"{k}: {v}" for k, v in cell.items()) or "equal" for cell in cells))
    Console(file=sys.stderr, width=200).print(table)
    failed = [stage for stage, files in runs[counts[0]][0].items() if "failed" in files]
    text = json.dumps({"samples": options.samples, "failed": failed, "alike": alike, "apart": apart}, indent=1)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if failed or any(any(found.values()) for found in alike.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
