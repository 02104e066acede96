"""The data of a refit: what the mask was scored on, found again, or a refusal that says what to pass."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.running import QUICK, call, done, tree, write_rows

from optin_cli.artifacts.base import DataRecord, Source, relative_path

REFIT = ("--samples", "16")


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def scored(made, here):
    """A checkpoint, its data in a folder, scores and a mask, all by relative paths."""
    shutil.copytree(made.bert, "bert")
    Path("data").mkdir()
    shutil.copyfile(made.texts, "data/texts.jsonl")
    done("score", "bert", "--calib", "data/texts.jsonl", *QUICK)
    done("search", "bert.scores.safetensors", "--keep-flops", "0.6")
    return here


def test_a_mask_says_how_its_data_was_read(scored):
    source = read_json("bert.mask.json")["inputs"]["calibration"]
    assert source["path"] == "data/texts.jsonl" and source["name"] == "texts.jsonl"
    record = DataRecord.model_validate(source["data"])
    assert (record.local, record.task, record.columns) == (True, None, None)
    assert record.samples is not None and record.length is not None


def test_without_calib_the_refit_is_on_what_scored(scored):
    run = done("prune", "bert", "--mask", "bert.mask.json", *REFIT, "-o", "recorded")
    assert "refitting on data/texts.jsonl, which bert.mask.json was scored on" in run.err
    done("prune", "bert", "--mask", "bert.mask.json", "--calib", "data/texts.jsonl", *REFIT, "-o", "named")
    assert tree(scored / "recorded") == tree(scored / "named")
    manifest = read_json("recorded/optin.json")
    assert manifest["refit"] and "data/" not in json.dumps(manifest), "what is published holds no paths"


@pytest.mark.parametrize("place", ["texts.jsonl", "masks/texts.jsonl", "masks/data/texts.jsonl"])
def test_the_data_is_looked_for_beside_the_mask_too(scored, place):
    Path("masks/data").mkdir(parents=True)
    shutil.move("bert.mask.json", "masks/m.json")
    shutil.move("data/texts.jsonl", place)
    assert "refitting on" in done("prune", "bert", "--mask", "masks/m.json", *REFIT, "-o", "small").err


def test_no_refit_says_so(scored):
    run = done("prune", "bert", "--mask", "bert.mask.json", "--no-refit", "-o", "small")
    assert "not refitted: the weights that are left are those of the original" in run.err
    assert read_json("small/optin.json")["refit"] is None


def lose_data():
    Path("data/texts.jsonl").unlink()


def change_data():
    write_rows(Path("data/texts.jsonl"), [{"sentence": "other words"}] * 30)


def spoil_data():
    Path("data/texts.jsonl").write_text("{")


def forget_reading():
    mask = read_json("bert.mask.json")
    del mask["inputs"]["calibration"]["data"]
    Path("bert.mask.json").write_text(json.dumps(mask))


def forget_data():
    mask = read_json("bert.mask.json")
    del mask["inputs"]["calibration"]
    Path("bert.mask.json").write_text(json.dumps(mask))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lose_data, 1, "there is no data/texts.jsonl here"),
        (change_data, 1, "data/texts.jsonl holds other samples now"),
        (spoil_data, 1, "data/texts.jsonl holds other samples now"),
        (forget_reading, 2, "records the name of its calibration data, texts.jsonl, alone"),
        (forget_data, 2, "records no calibration data"),
    ],
)
def test_data_that_cannot_be_found_is_asked_for(scored, spoil, code, words):
    spoil()
    run = call("prune", "bert", "--mask", "bert.mask.json", "-o", "small")
    assert run.code == code and words in run.err
    assert "--calib" in run.err and "--no-refit" in run.err
    assert not Path("small").exists()


@pytest.mark.parametrize(
    ("given", "name", "kept"),
    [
        ("data/x.jsonl", "x.jsonl", "data/x.jsonl"),
        ("../x.jsonl", "x.jsonl", "../x.jsonl"),
        ("x.jsonl", "x.jsonl", None),
        ("/data/x.jsonl", "x.jsonl", None),
        ("link", "target", "link"),
        (".", "here", None),
        (None, "sst2", None),
    ],
)
def test_relative_paths_alone_are_recorded(given, name, kept):
    assert relative_path(given, name) == kept


def test_the_same_data_is_the_same_wherever_it_lies():
    here = Source(name="x", sha256="0" * 64, path="a/x", data=DataRecord(local=True))
    assert here.is_same(Source(name="x", sha256="0" * 64)) and here.place == "a/x"
    assert not here.is_same(Source(name="x", sha256="1" * 64)) and not here.is_same(None)
    assert here.published.model_dump() == {"name": "x", "sha256": "0" * 64}
