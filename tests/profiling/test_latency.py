"""Latency tables: what is timed, what the file says, and tables that do not belong."""

import json

import pytest
import torch
from helpers.models import build, save_checkpoint, structure_of
from helpers.running import call, done

import optin_cli
from optin_cli.artifacts.base import Workload, parse
from optin_cli.artifacts.evaluation import Evaluation, Latency
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.options.latency import LatencyOptions
from optin_cli.profiling import latency
from optin_cli.profiling.devices import describe_device, other_device

# Measuring


def test_really_pruned_models_are_timed_in_turn(tmp_path, monkeypatch):
    """Really cut models, all interleaved, one for each size of each kind of layer; the original stays whole."""
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "bert"))
    timed = []

    def spy(models, inputs, workload, *, runs, warmup):
        timed.extend((sum(p.numel() for p in m.parameters()), m(**inputs[0])["logits"].shape[0]) for m in models)
        times = [20.0, 11.0, 13.0, 15.0, 17.0, 11.0, 12.0, 12.5, 14.0, 16.0, 12.0]
        rest = {"runs": runs, "device": "cpu", "threads": 1, "samples_per_second": 1.0, **workload.model_dump()}
        return [Latency(median_ms=ms, **rest) for ms in times]

    monkeypatch.setattr(latency, "forward_latency", spy)
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    table = optin_cli.profile_latency(checkpoint, seq_len=16, options=LatencyOptions(batch_size=2, runs=3))
    assert [rows for _, rows in timed] == [2] * 11
    sizes = [parameters for parameters, _ in timed]
    assert (
        sizes[0] > max(sizes[1:10])
        and sizes[1:5] == sorted(sizes[1:5])
        and sizes[5:10] == sorted(sizes[5:10])
        and sizes[10] == sizes[0]
    )
    assert all(torch.equal(p, before[name]) for name, p in checkpoint.model.named_parameters())
    # Of four heads, one is a quarter too, so that there is a size less.
    assert table.groups["encoder.0.head"].units == [0, 1, 2, 3, 4]
    assert table.groups["encoder.0.neuron"].units == [0, 1, 10, 20, 30, 40]
    assert table.groups["encoder.0.head"] == table.groups["encoder.2.head"]
    assert table.groups["encoder.1.head"].ms == pytest.approx([0, 2 / 3, 4 / 3, 2, 3])
    assert table.groups["encoder.1.block"].units == [0, 1]
    assert table.groups["encoder.1.block"].ms == pytest.approx([0, 4]), "without two of three"
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
    assert "encoder.0–2 neuron" in done("inspect", table).out
    assert "encoder.0.neuron" in done("inspect", table, "--all").out
    assert done("inspect", table, "--json").out == table.read_text()


def test_tables_and_evaluations_name_the_device_alike(table, made):
    evaluation = parse(Evaluation, made.evaluation.read_text(), "evaluation")
    found = parse(LatencyTable, table.read_text(), "table")
    assert evaluation.latency.device == found.device == describe_device(torch.device("cpu"))
    assert found.device.startswith("cpu (")
    shown = " ".join(done("inspect", table).out.split())
    assert found.timed_on in shown and found.timed_on.endswith(", 1 thread")


def test_search_meets_time_and_flops_together(table, made, here):
    flat = flattened(table, here)
    args = ("--keep-latency", "0.8", "--latency-table", flat, "--keep-flops", "0.7", "-o", "m.json")
    run = done("search", made.scores, *args)
    mask = parse(Mask, (here / "m.json").read_text(), "mask")
    assert mask.budget.asked == {"macs": 0.7, "latency": 0.8}
    assert mask.budget.reached["macs"] <= 0.7 and mask.budget.reached["latency"] <= 0.8
    assert mask.options["latency"] | {"batch_size": 1, "seq_len": 32, "threads": 1} == mask.options["latency"]
    assert mask.inputs["latency_table"].name == "flat.latency.json"
    assert "of measured time" in run.err


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


def test_tables_that_do_not_belong_are_refused(table, made, here):
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
def test_wrong_options_of_profile_are_refused(made, here, args, words):
    run = call("profile", made.bert, *args)
    assert run.code == 2 and words in run.err and not list(here.iterdir())
