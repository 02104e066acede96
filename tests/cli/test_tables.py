"""Tables for people: equal layers as one row, deep models by stretches, and every width of a terminal."""

import io
import re

import numpy as np
import pytest
from helpers.running import done
from rich.console import Console

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.mask import GroupMask, Mask
from optin_cli.cli.fitting import FittingTable
from optin_cli.cli.layers import alike, span, stretches
from optin_cli.cli.mask_picture import picture
from optin_cli.cli.tables import evaluation_table, mask_table, profile_table

WIDTHS = (60, 80, 120)


def shown(table, width):
    """The lines of a table on a terminal of that width."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return stream.getvalue().splitlines()


def profile_of(made, layers=12, units=(12, 3072)):
    """The profile of a model of as many equal layers as a base model has."""
    known = parse(Profile, made.profile.read_text(), "profile")
    first = {kind: known.groups[f"encoder.0.{kind}"] for kind in ("head", "neuron")}
    groups = {
        f"encoder.{number}.{kind}": group.model_copy(
            update={"units": count, "block": f"encoder.{number}", "unit_macs": 6_291_456.0, "shared": {}}
        )
        for number in range(layers)
        for (kind, group), count in zip(first.items(), units, strict=True)
    }
    totals = known.totals.model_copy(update={"macs": 1_234_567_890_123, "parameters": 109_483_778})
    return known.model_copy(update={"groups": groups, "totals": totals})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["encoder.3.head"], "encoder.3.head"),
        (["encoder.0.head", "encoder.1.head", "encoder.2.head"], "encoder.0–2 head"),
        (["a.0.neuron", "a.2.neuron", "a.3.neuron", "a.7.neuron"], "a.0,2–3,7 neuron"),
        (["stages.1.0.channel", "stages.1.1.channel"], "stages.1.0–1 channel"),
    ],
)
def test_a_row_is_called_by_its_layers(names, words):
    assert span(names) == words


def test_alike_layers_are_one_row_and_others_are_not():
    rows = {
        "a.0.head": 1,
        "a.0.neuron": 2,
        "a.1.head": 1,
        "a.1.neuron": 3,
        "b.0.head": 1,
        "stem.head": 1,
        "top.head": 1,
    }
    assert alike(rows) == [
        ["a.0.head", "a.1.head"],
        ["a.0.neuron"],
        ["a.1.neuron"],
        ["b.0.head"],
        ["stem.head"],
        ["top.head"],
    ]


@pytest.mark.parametrize(("blocks", "rows"), [(23, 23), (24, 12), (32, 11), (80, 12)])
def test_deep_models_are_shown_by_stretches(blocks, rows):
    names = [f"model.{number}.{kind}" for number in range(blocks) for kind in ("head", "neuron")]
    found = stretches(names)
    assert len(found) == 2 * rows and sorted(name for row in found for name in row) == sorted(names)


def numbers_in(lines):
    return {number for line in lines for number in re.findall(r"\d[\d,.]*%?", line)}


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_of_a_profile_never_break(made, width):
    result = profile_of(made)
    wide, lines = shown(profile_table(result), 200), shown(profile_table(result), width)
    assert max(map(len, lines)) <= width
    body = [line for line in lines if line.startswith("│")]
    assert numbers_in(body) <= numbers_in(wide), "a number was cut"
    assert not [line for line in body if "…" in line]
    assert len(body) == 4 and "encoder.0–11 head" in body[0]
    assert {"3,072", "27.8%"} & numbers_in(body), "what is needed most stays"


def test_all_groups_are_shown_on_request(made):
    lines = shown(profile_table(profile_of(made), every=True), 120)
    assert sum("encoder." in line for line in lines) == 24


@pytest.mark.parametrize("width", WIDTHS)
def test_an_evaluation_fits(made, width):
    result = parse(Evaluation, made.evaluation.read_text(), "evaluation")
    big = result.model_copy(update={"totals": result.totals.model_copy(update={"macs": 22_347_522_048})})
    lines = shown(evaluation_table(big), width)
    assert max(map(len, lines)) <= width
    assert any("22.35" in line for line in lines)


def mask_of(made, blocks, units=40):
    known = parse(Mask, made.mask.read_text(), "mask")
    rng = np.random.default_rng(0)
    groups = {
        f"model.{number}.{kind}": GroupMask(units=count, kept=sorted(rng.choice(count, size, replace=False).tolist()))
        for number in range(blocks)
        for kind, count, size in (("head", 12, rng.integers(1, 13)), ("neuron", units, rng.integers(1, units)))
    }
    return known.model_copy(update={"groups": groups})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("blocks", [12, 32])
def test_a_picture_of_a_mask_fits(made, blocks, width):
    mask = mask_of(made, blocks, units=11008)
    lines = picture(mask, {name: name.rpartition(".")[2] for name in mask.groups}, width=width).splitlines()
    assert len(lines) == 1 + (12 if blocks == 12 else 11)
    assert max(map(len, lines)) <= width and lines[0].startswith("keeps ")
    kept = sum(len(group.kept) for name, group in mask.groups.items() if name.endswith("head"))
    counted = [re.search(r"head \D*(\d+)/", line)[1] for line in lines[1:]]
    assert sum(map(int, counted)) == kept


def test_a_table_of_a_mask_of_a_deep_model(made):
    mask = mask_of(made, 48)
    assert sum("model." in line for line in shown(mask_table(mask), 80)) == 24
    assert sum("model." in line for line in shown(mask_table(mask, every=True), 80)) == 96


def test_the_least_needed_column_goes_first():
    table = FittingTable()
    table.add_names("group", whole=True)
    table.add_figures("kept")
    table.add_figures("samples", spare=1)
    table.add_figures("error", spare=2)
    table.add_row("encoder.0.head", "12,345,678", "4,096", "12.3%")
    headings = {
        width: [word for word in ("kept", "samples", "error") if word in "".join(shown(table, width))]
        for width in (80, 44, 36)
    }
    assert headings == {80: ["kept", "samples", "error"], 44: ["kept", "samples"], 36: ["kept"]}


def test_inspect_takes_all(made):
    assert "encoder.0.head" in done("inspect", made.mask, "--all").out
