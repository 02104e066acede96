"""Wall time of `optin demo` alone and beside busy loops, and the ratio of the two.

    python tests/benchmarks/contention.py [--busy 2] [--runs 3] [--processors 2] [--output contention.json]

Every run is a fresh process in a fresh folder; runs alone and beside the loops take turns, and medians are compared.
Loops are processes that only count, as many as --busy. All of them, and the demo, are held to the first --processors
that this process may use. Settings of threads are taken out of the environment, so that the demo chooses its own.
Prints a Markdown table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

LOOP = "while True: pass"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
MOST = 4.0
"""The ratio that is asked for."""


@contextlib.contextmanager
def busy(count: int):
    """Processes that do nothing but count, while the context lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure() -> dict[str, float]:
    """Wall and processor seconds of one demo."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    with tempfile.TemporaryDirectory() as folder:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        line = [sys.executable, "-m", "optin_cli", "demo", "demo"]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2, help="busy loops beside the demo")
    parser.add_argument("--runs", type=int, default=3, help="runs of either kind")
    parser.add_argument("--processors", type=int, default=2, help="processors that all of them share")
    parser.add_argument("--output", type=Path, help="file for the JSON too")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
    )
    mine = sorted(os.sched_getaffinity(0))[: options.processors]
    os.sched_setaffinity(0, mine)
    load = os.getloadavg()[0]
    alone, beside = [], []
    for number in range(options.runs):
        alone.append(measure())
        with busy(options.busy):
            beside.append(measure())
        print(f"run {number + 1}: alone {alone[-1]['wall']:.1f} s, beside {beside[-1]['wall']:.1f} s", file=sys.stderr)
    found = {"alone": alone, "beside": beside}
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    ratio = medians["beside"]["wall"] / medians["alone"]["wall"]
    result = {
        "machine": {"processor": processor(), "processors": len(mine), "load_before": load},
        "busy": options.busy,
        "runs": found,
        "median": medians,
        "ratio": ratio,
        "asked": MOST,
    }
    table = Table(box=box.MARKDOWN, title=f"optin demo on {processor()}, {len(mine)} processors")
    for name in ("", "wall, s", "CPU, s"):
        table.add_column(name)
    for name, words in (("alone", "alone"), ("beside", f"beside {options.busy} busy loops")):
        table.add_row(words, f"{medians[name]['wall']:.1f}", f"{medians[name]['cpu']:.1f}")
    Console(file=sys.stderr, width=100).print(table, f"ratio {ratio:.2f} (asked: at most {MOST:g})")
    text = json.dumps(result, indent=1)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
