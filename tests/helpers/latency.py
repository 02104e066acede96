"""Latency tables of models that do not exist."""

from optin_cli.artifacts.base import Source, Workload
from optin_cli.artifacts.latency import LatencyTable

SOURCE = Source(name="tiny", sha256="a" * 64)


def make_table(ladders, rest=10.0, source=SOURCE, **fields):
    whole = rest + sum(float(ladder.curve()[-1]) for ladder in ladders.values())
    described = {"workload": Workload(seq_len=16), "device": "cpu (x)", "threads": 1, "versions": {}}
    return LatencyTable(
        optin_version="0",
        options={},
        inputs={"checkpoint": source},
        total_ms=whole,
        groups=ladders,
        **described | fields,
    )
