"""Latency tables: what is measured, the budget that the search meets by them, and where they do not belong."""

import itertools
import json

import numpy as np
import pytest
import torch
from helpers.models import build, save_checkpoint, structure_of
from helpers.running import call, done
from hypothesis import given, settings
from hypothesis import strategies as st

import optin_cli
from optin_cli.artifacts.base import Source, Totals, Workload, parse, timed_on
from optin_cli.artifacts.costs import ConfigCounts, GroupCost
from optin_cli.artifacts.evaluation import Evaluation, Latency
from optin_cli.artifacts.latency import MOST_LEVELS, Ladder, LatencyTable, coarser, isotonic
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArtifactError, BudgetError, UsageError
from optin_cli.options.latency import LatencyOptions
from optin_cli.profiling import latency
from optin_cli.profiling.devices import describe_device, other_device
from optin_cli.searching.choose import choose_units, importance_lost
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

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


class Timed:
    """Layers of heads and neurons whose times are measured, jumps, plateaus and noise included."""

    def __init__(self, groups, rest):
        self.groups, self.importance, ladders = {}, {}, {}
        for number, (kind, values, macs, times) in enumerate(groups):
            name = f"encoder.{number}.{kind}"
            units = len(values)
            cost = {"unit_macs": macs, "unit_parameters": macs, "config": ConfigCounts()}
            self.groups[name] = GroupCost(kind=kind, block=f"encoder.{number}", units=units, **cost)
            self.importance[name] = np.array(values, np.float32)
            counts = sorted({0, 1, units // 2, units})
            ladders[name] = Ladder(units=counts, ms=np.cumsum(times)[: len(counts)].tolist())
        macs = 5 + sum(g.unit_macs * g.units for g in self.groups.values())
        self.totals = Totals(macs=int(macs), parameters=int(macs), bytes=0)
        self.table = make_table(ladders, rest)

    def choose(self, **limits):
        found = Limits(latency_table=self.table, **limits)
        return choose_units(self.importance, Costs(self.groups, self.totals), found)

    def shares(self, kept):
        time = self.table.reached({name: len(units) for name, units in kept.items()})
        return Costs(self.groups, self.totals).remaining(kept) | {"latency": time}

    def best(self, keep_latency, keep_macs):
        """Least importance that any mask within both budgets loses, None where there is none."""
        found = None
        order = {name: np.argsort(-values, kind="stable").tolist() for name, values in self.importance.items()}
        for counts in itertools.product(*(range(g.units + 1) for g in self.groups.values())):
            kept = {name: order[name][:k] for name, k in zip(self.groups, counts, strict=True)}
            now = self.shares(kept)
            if now["latency"] <= keep_latency + 1e-9 and now["macs"] <= (keep_macs or 1) + 1e-9:
                lost = importance_lost(kept, self.importance)
                found = lost if found is None else min(found, lost)
        return found


GROUPS = st.lists(
    st.tuples(
        st.sampled_from(["head", "neuron"]),
        st.lists(st.floats(0, 1, width=16), min_size=1, max_size=5),
        st.integers(1, 9),
        st.lists(st.floats(-0.5, 4, width=16), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
INSTANCES = st.builds(Timed, GROUPS, st.floats(0.5, 9, width=16))
SHARES = st.integers(20, 100).map(lambda percent: percent / 100)


@settings(max_examples=150, deadline=None)
@given(INSTANCES, SHARES, st.none() | SHARES)
def test_choice_is_the_best_of_all_masks(instance, keep_latency, keep_macs):
    best = instance.best(keep_latency, keep_macs)
    limits = {"keep_latency": keep_latency, "keep_macs": keep_macs}
    if best is None:
        with pytest.raises(BudgetError, match="smallest reachable share"):
            instance.choose(**limits)
        return
    kept = instance.choose(**limits)
    now = instance.shares(kept)
    assert now["latency"] <= keep_latency + 1e-6 and now["macs"] <= (keep_macs or 1) + 1e-9
    assert importance_lost(kept, instance.importance) == pytest.approx(best, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(INSTANCES, SHARES)
def test_a_uniform_layout_keeps_within_time_too(instance, keep_latency):
    try:
        kept = instance.choose(keep_latency=keep_latency, layout="uniform")
    except BudgetError:
        return
    assert instance.shares(kept)["latency"] <= keep_latency + 1e-6
    for kind in ("head", "neuron"):
        assert len({len(units) for name, units in kept.items() if name.endswith(kind)}) <= 1


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_isotonic_never_falls_and_keeps_the_mean(values):
    found = isotonic(np.array(values))
    assert (np.diff(found) >= -1e-12).all() and found.mean() == pytest.approx(np.mean(values), abs=1e-9)
    rising = np.sort(values)
    assert np.allclose(isotonic(rising), rising)


@pytest.mark.parametrize("units", [12, 128, 1536, 3072, 4100])
def test_large_groups_go_in_steps(units):
    levels = coarser(list(range(units + 1)))
    assert len(levels) <= MOST_LEVELS + 2 and levels[0] == 0 and levels[-1] == units
    step = levels[1]
    assert step & (step - 1) == 0 and (step == 1) == (units < MOST_LEVELS)
    assert all(level % step == 0 for level in levels[:-1])


def test_large_instances_are_met_closely():
    rng = np.random.default_rng(0)
    groups = [("head", rng.exponential(size=12), 2e5, [0, 0.3, 0.6, 0.6]) for _ in range(6)]
    groups += [("neuron", rng.exponential(size=1536), 7e4, [0, 0.2, 1.0, 1.1]) for _ in range(6)]
    instance = Timed(groups, 4.0)
    for share in (0.4, 0.6, 0.8):
        now = instance.shares(instance.choose(keep_latency=share))["latency"]
        assert share - 0.01 < now <= share + 1e-6


def test_a_budget_needs_its_table_and_its_units():
    instance = Timed([("head", [1.0, 0.5], 3, [0, 1, 1, 1])], 1.0)
    with pytest.raises(UsageError, match="needs measured times"):
        choose_units(
            instance.importance,
            Costs(instance.groups, instance.totals),
            Limits(keep_latency=0.5),
        )
    instance.table = make_table({"encoder.0.head": Ladder(units=[0, 1, 3], ms=[0, 1, 2])})
    with pytest.raises(ArtifactError, match="has 3 units; it has 2"):
        instance.choose(keep_latency=0.9)


# Measuring


def test_what_is_timed(tmp_path, monkeypatch):
    """Really cut models, all interleaved, one for each size of each kind of layer; the original stays whole."""
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "bert"))
    timed = []

    def spy(models, inputs, workload, *, runs, warmup):
        timed.extend((sum(p.numel() for p in m.parameters()), m(**inputs[0])["logits"].shape[0]) for m in models)
        times = [20.0, 11.0, 13.0, 15.0, 17.0, 11.0, 12.0, 12.5, 14.0, 16.0]
        rest = {"runs": runs, "device": "cpu", "threads": 1, "samples_per_second": 1.0, **workload.model_dump()}
        return [Latency(median_ms=ms, **rest) for ms in times]

    monkeypatch.setattr(latency, "forward_latency", spy)
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    table = optin_cli.profile_latency(checkpoint, seq_len=16, options=LatencyOptions(batch_size=2, runs=3))
    assert [rows for _, rows in timed] == [2] * 10
    sizes = [parameters for parameters, _ in timed]
    assert sizes[0] > max(sizes[1:]) and sizes[1:5] == sorted(sizes[1:5]) and sizes[5:] == sorted(sizes[5:])
    assert all(torch.equal(p, before[name]) for name, p in checkpoint.model.named_parameters())
    # Of four heads, one is a quarter too, so that there is a size less.
    assert table.groups["encoder.0.head"].units == [0, 1, 2, 3, 4]
    assert table.groups["encoder.0.neuron"].units == [0, 1, 10, 20, 30, 40]
    assert table.groups["encoder.0.head"] == table.groups["encoder.2.head"]
    assert table.groups["encoder.1.head"].ms == pytest.approx([0, 2 / 3, 4 / 3, 2, 3])
    assert table.total_ms == 20.0 and table.workload == Workload(batch_size=2, seq_len=16)
    assert table.inputs == {"checkpoint": checkpoint.source}
    whole = {name: group.units[-1] for name, group in table.groups.items()}
    assert table.reached(whole) == 1.0


def test_layers_of_the_same_shapes_are_timed_together():
    model = build("bert")
    alike = latency.alike_groups(model, structure_of(model))
    assert [[group.name for group in groups] for groups in alike] == [
        [f"encoder.{layer}.{kind}" for layer in range(3)] for kind in ("head", "neuron")
    ]


@pytest.fixture(scope="module")
def table(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "bert.latency.json"
    done("profile", made.bert, "--latency", "--batch", 1, "--seq-len", 32, "--runs", 2, "--threads", 1, "-o", path)
    return path


def flattened(path, folder, source=None):
    """The table with times as they should be, so that no noise of this machine decides a test."""
    raw = json.loads(path.read_text())
    for ladder in raw["groups"].values():
        ladder["ms"] = [float(units) / ladder["units"][-1] for units in ladder["units"]]
    raw["total_ms"] = 10.0
    raw["inputs"]["checkpoint"].update(source or {})
    target = folder / "flat.latency.json"
    target.write_text(json.dumps(raw))
    return target


def test_the_file_says_what_was_measured(table, made):
    found = parse(LatencyTable, table.read_text(), "table")
    assert found.workload == Workload(batch_size=1, seq_len=32) and found.options["runs"] == 2
    assert found.threads == 1 and found.device == describe_device(torch.device("cpu")) and "torch" in found.versions
    assert "encoder.0.neuron" in done("inspect", table).out
    assert done("inspect", table, "--json").out == table.read_text()


def test_tables_and_evaluations_name_the_device_alike(table, made):
    evaluation = parse(Evaluation, made.evaluation.read_text(), "evaluation")
    found = parse(LatencyTable, table.read_text(), "table")
    assert evaluation.latency.device == found.device == describe_device(torch.device("cpu"))
    assert found.device.startswith("cpu (")
    shown = " ".join(done("inspect", table).out.split())
    assert found.timed_on in shown and found.timed_on.endswith(", 1 thread")


@pytest.mark.parametrize(
    ("device", "threads", "words"),
    [
        ("cpu", 1, "cpu, 1 thread"),
        ("cpu", 2, "cpu, 2 threads"),
        ("cpu (AMD EPYC 7763 64-Core Processor)", 2, "cpu (AMD EPYC 7763 64-Core Processor), 2 threads"),
        ("cuda (NVIDIA H100)", 2, "cuda (NVIDIA H100)"),
        ("mps", 2, "mps"),
    ],
)
def test_threads_are_told_of_cpus_alone(device, threads, words):
    assert timed_on(device, threads) == words
    assert make_table({"a": Ladder(units=[0, 1], ms=[0, 1])}, device=device, threads=threads).timed_on == words


def test_search_meets_time_and_flops_together(table, made, here):
    flat = flattened(table, here)
    args = ("--keep-latency", "0.8", "--latency-table", flat, "--keep-flops", "0.7", "-o", "m.json")
    run = done("search", made.scores, *args)
    mask = parse(Mask, (here / "m.json").read_text(), "mask")
    assert mask.budget.asked == {"macs": 0.7, "latency": 0.8}
    assert mask.budget.reached["macs"] <= 0.7 and mask.budget.reached["latency"] <= 0.8
    assert mask.options["latency"] | {"batch_size": 1, "seq_len": 32, "threads": 1} == mask.options["latency"]
    assert mask.inputs["latency_table"].name == "flat.latency.json"
    assert "of the latency" in run.err


def test_another_device_or_thread_count_is_told(table, made, here):
    flat = flattened(table, here)
    raw = json.loads(flat.read_text())
    for changed, words in (
        ({"device": "cpu (abacus)"}, "measured on cpu (abacus); here is cpu"),
        ({"threads": 99}, "99 thread"),
    ):
        flat.write_text(json.dumps(raw | changed))
        args = ("--keep-latency", "0.8", "--latency-table", flat, "-o", "m.json", "--force")
        run = call("search", made.scores, *args)
        assert run.code == 0 and "warning: flat.latency.json was" in run.err and words in run.err
    assert other_device(describe_device(torch.device("cpu")), torch.get_num_threads()) is None


def test_tables_that_do_not_belong(table, made, here):
    flat = flattened(table, here, source={"sha256": "b" * 64})
    budget = ("--keep-latency", "0.8", "--latency-table")
    cases = [
        ((*budget, flat), 1, "was made from checkpoint bert"),
        ((*budget, made.mask), 1, "is a mask file"),
        ((*budget, "none.json"), 1, "does not exist"),
        (("--keep-latency", "0.8"), 2, "go together"),
        (("--keep-flops", "0.8", "--latency-table", flat), 2, "go together"),
    ]
    for args, code, words in cases:
        run = call("search", made.scores, *args)
        assert run.code == code and words in run.err, run.err
    flat = flattened(table, here)
    run = call("search", made.scores, *budget[:1], "0.01", budget[2], flat)
    assert run.code == 1 and "of the latency cannot be met: the smallest reachable share is 0.4" in run.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--batch", "2"), "Pass --latency with it"),
        (("--latency", "--batch", "0"), "expected at least 1"),
        (("--latency", "--runs", "0"), "expected at least 1"),
        (("--latency", "--threads", "0"), "--threads is 0"),
        (("--latency", "--seq-len", "9999"), "is not within 1 to"),
    ],
)
def test_wrong_options_of_profile(made, here, args, words):
    run = call("profile", made.bert, *args)
    assert run.code == 2 and words in run.err and not list(here.iterdir())


@pytest.mark.parametrize(
    ("ladder", "words"),
    [
        ({"units": [0, 2], "ms": [0.0]}, "2 counts of units have 1 times"),
        ({"units": [2, 0], "ms": [0.0, 1.0]}, "must be ascending"),
        ({"units": [0, 2], "ms": [0.0, float("nan")]}, "finite"),
    ],
)
def test_invalid_ladders(ladder, words):
    with pytest.raises(ValueError, match=words):
        Ladder(**ladder)
