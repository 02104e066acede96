"""Plots of a sweep: files, terminal, and matplotlib missing."""

import pytest
from helpers.running import tree

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.evaluation import Latency
from optin_cli.artifacts.sweep import Sweep, SweepBaseline, SweepPoint
from optin_cli.sweeping.plots import PICTURES, _label_latency, draw_text, write_pictures


def example(*, timed=True, chosen=None, points=None):
    latency = Latency(
        batch_size=8, seq_len=64, runs=3, device="cpu", threads=2, median_ms=12.5, samples_per_second=640.0
    )
    table = {"optin": [0.88, 0.875, 0.86], "no-refit": [0.875, 0.84, 0.7]}
    made = [
        SweepPoint(
            recipe=recipe,
            asked=share,
            macs_ratio=share - 0.001,
            parameters_ratio=share + 0.1,
            value=value,
            standard_error=0.008,
            drop=0.88 - value,
            agreement=0.95,
            latency=latency if timed else None,
            latency_ratio=share + 0.05 if timed else None,
            prepare_seconds=1.0,
            prune_seconds=2.0,
        )
        for recipe, values in table.items()
        for share, value in zip((0.6, 0.5, 0.4), values, strict=True)
    ]
    return Sweep(
        optin_version="0",
        options={"max_drop": None if chosen is None else 0.01},
        inputs={"checkpoint": Source(name="tiny", sha256="0" * 64)},
        task="sst2",
        split="validation",
        samples=872,
        metric="accuracy",
        higher_is_better=True,
        workload=Workload(seq_len=128),
        baseline=SweepBaseline(
            value=0.88,
            standard_error=0.011,
            totals=Totals(macs=10, parameters=10, bytes=10),
            latency=latency if timed else None,
        ),
        points=made if points is None else points,
        chosen=chosen,
    )


def test_pictures_are_real_say_what_they_show_and_repeat(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert [path.name for path in write_pictures(example(chosen=1), folder)] == [*PICTURES]
        contents.append(tree(folder))
    assert contents[0] == contents[1]
    pixels = imread(tmp_path / "a" / "sweep.png")
    assert pixels.std() > 0.05
    assert pixels.shape[1] > 1000
    assert b"<dc:date>" not in contents[0]["sweep.svg"]


def test_pictures_name_the_device_below_the_panel():
    figure = pytest.importorskip("matplotlib.figure")
    sweep = example()
    device = "cpu (Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz and more)"
    speed = sweep.baseline.latency.model_copy(update={"device": device, "threads": 16})
    baseline = sweep.baseline.model_copy(update={"latency": speed})
    axes = figure.Figure().subplots()
    _label_latency(axes, sweep.model_copy(update={"baseline": baseline}))
    lines = axes.get_xlabel().splitlines()
    assert f"{device}, 16 threads" in " ".join(lines) and "(batch 8, 64 tokens; original 12.5 ms)" in lines
    assert max(map(len, lines)) <= 56


def test_pictures_without_latency_or_points(tmp_path):
    pytest.importorskip("matplotlib")
    assert write_pictures(example(timed=False), tmp_path)
    assert write_pictures(example(points=[]), tmp_path)


def test_the_terminal_picture_places_points():
    drawn = draw_text(example()).splitlines()
    assert any(line.strip().startswith("0.8800 │") and "┄" in line for line in drawn)
    assert any(line.strip().startswith("0.7000 │") and "▲" in line for line in drawn)
    assert drawn[-1].split() == ["●", "optin", "▲", "no-refit", "┄", "original"]
    assert max(map(len, drawn)) <= 100
    assert draw_text(example(points=[]))
