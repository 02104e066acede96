"""Plots of a sweep: a file, and the terminal."""

from xml.etree import ElementTree

from helpers.running import tree

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.evaluation import Latency
from optin_cli.artifacts.sweep import Sweep, SweepBaseline, SweepPoint
from optin_cli.reporting.frontier import draw_frontier
from optin_cli.sweeping.plots import draw_text


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


SVG = "{http://www.w3.org/2000/svg}"


def drawn(sweep, folder):
    folder.mkdir()
    picture = draw_frontier(sweep)
    (folder / "sweep.svg").write_text(picture, encoding="utf-8")
    return ElementTree.fromstring(picture)


def words(root):
    return [" ".join("".join(node.itertext()).split()) for node in root.iter(f"{SVG}text")]


def test_the_picture_says_what_it_shows_and_repeats(tmp_path):
    root = drawn(example(chosen=1), tmp_path / "a")
    drawn(example(chosen=1), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert "var(" not in (tmp_path / "a" / "sweep.svg").read_text(encoding="utf-8")  # which many viewers do not know
    assert root.tag == f"{SVG}svg"
    said = words(root)
    for line in ("tiny on sst2 (validation, 872 samples)", "optin", "no-refit", "chosen", "original 0.8800"):
        assert line in said, line
    assert any("2 threads" in line and "12.5 ms" in line for line in said)
    width = float(root.get("width"))
    assert all(0 <= float(node.get("x")) < width for node in root.findall(f"{SVG}text"))


def test_names_are_text_in_the_picture(tmp_path):
    sweep = example()
    source = sweep.inputs["checkpoint"].model_copy(update={"name": "<script>alert(1)</script>"})
    root = drawn(sweep.model_copy(update={"inputs": {"checkpoint": source}}), tmp_path / "a")
    assert not list(root.iter(f"{SVG}script")) and any("<script>" in line for line in words(root))


def test_pictures_without_latency_or_points(tmp_path):
    assert "latency" not in " ".join(words(drawn(example(timed=False), tmp_path / "a")))
    assert drawn(example(points=[]), tmp_path / "b") is not None


def test_the_terminal_picture_places_points():
    drawn = draw_text(example()).splitlines()
    assert any(line.strip().startswith("0.8800 │") and "┄" in line for line in drawn)
    assert any(line.strip().startswith("0.7000 │") and "▲" in line for line in drawn)
    assert drawn[-1].split() == ["●", "optin", "▲", "no-refit", "┄", "original"]
    assert max(map(len, drawn)) <= 100
    assert draw_text(example(points=[]))
