"""Sweep records to draw and compare."""

from optin_cli.artifacts.base import Totals, Workload
from optin_cli.artifacts.evaluation import Latency
from optin_cli.artifacts.sweep import Sweep, SweepBaseline, SweepPoint


def point(recipe, asked, value, **more):
    speed = Latency(batch_size=32, seq_len=64, runs=3, device="cpu", threads=1, median_ms=9.0, samples_per_second=3.0)
    fixed = {"macs_ratio": asked - 0.001, "parameters_ratio": 0.8, "standard_error": 0.01, "drop": 0.9 - value}
    times = {"latency": speed, "latency_ratio": asked + 0.1, "prepare_seconds": 2.0, "prune_seconds": 1.0}
    return SweepPoint(recipe=recipe, asked=asked, value=value, agreement=0.97, **(fixed | times | more))


def make_sweep(source, data, points, **more):
    speed = Latency(batch_size=32, seq_len=64, runs=3, device="cpu", threads=1, median_ms=12.0, samples_per_second=2.0)
    totals = Totals(macs=1000, parameters=100, bytes=400)
    baseline = SweepBaseline(value=0.9, standard_error=0.01, totals=totals, latency=speed)
    fixed = {"task": "sst2", "split": "validation", "samples": 24, "metric": "accuracy", "higher_is_better": True}
    return Sweep(
        optin_version="0.1.0",
        options={"recipes": ["optin", "magnitude"], "keep_flops": [0.7, 0.5], "max_drop": None, "samples": 16},
        inputs={"checkpoint": source, "calibration": data, "data": data},
        workload=Workload(seq_len=128),
        baseline=baseline,
        points=points,
        **(fixed | more),
    )
