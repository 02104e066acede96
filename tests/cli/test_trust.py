"""Inputs of unknown origin, and outputs that would harm what is there: both are refused, and nothing changes."""

import json
import os
import shutil

import pytest
from helpers.desk import SCORE, refused
from helpers.running import QUICK, call, done, tree

PRUNE = ("prune", "bert", "--mask", "bert.mask.json", "--no-refit")
SEARCH = ("search", "bert.scores.safetensors", "--keep-flops", "0.6")
EVAL = ("eval", "bert", "--task", "sst2", "--data", "train.jsonl", "--latency-runs", "0")
DESTROYED = {
    "the checkpoint by its cut": (*PRUNE, "-o", "bert"),
    "a checkpoint through a link": (*PRUNE, "-o", "linked"),
    "a folder of others": (*PRUNE, "-o", "project"),
    "a folder that holds an input": ("prune", "project/bert", "--mask", "bert.mask.json", "-o", "project"),
    "scores by their mask": (*SEARCH, "-o", "bert.scores.safetensors"),
    "data by their evaluation": (*EVAL, "-o", "train.jsonl"),
    "a mask by its report": ("report", "--mask", "bert.mask.json", "-o", "bert.mask.json"),
    "a config by a profile": ("profile", "bert", "-o", "bert/config.json"),
    "weights by their scores": (*SCORE, "texts.jsonl", *QUICK, "-o", "bert/model.safetensors"),
    "a vocabulary's checkpoint": ("trim", "bert", "--calib", "texts.jsonl", "-o", "bert"),
    "the checkpoint by what it shrinks to": (
        "shrink",
        "bert",
        "--calib",
        "texts.jsonl",
        "--keep-flops",
        "0.6",
        "-o",
        "bert",
    ),
}


@pytest.mark.parametrize("args", DESTROYED.values(), ids=DESTROYED)
def test_force_does_not_destroy_inputs_or_what_others_made(desk, args):
    desk.take("bert", "texts.jsonl", "train.jsonl", "bert.mask.json", "bert.scores.safetensors")
    (desk.folder / "project").mkdir()
    (desk.folder / "project/thesis.tex").write_text("work")
    shutil.copytree(desk.folder / "bert", desk.folder / "project/bert")
    (desk.folder / "linked").symlink_to("bert")
    words = ["optin did not write"] if args == DESTROYED["a folder of others"] else ["which writing it would destroy"]
    refused(desk.folder, [*args, "--force"], 1, words)


def test_force_replaces_what_optin_wrote(desk):
    desk.take("bert", "bert.mask.json", "bert-pruned")
    (desk.folder / "bert-pruned/notes").write_text("mine")
    done(*PRUNE, "-o", "bert-pruned", "--force")
    assert tree(desk.folder / "bert-pruned") == tree(desk.made.pruned)


# Records and the weights that they certify


def short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def changed(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0?")


@pytest.mark.parametrize("spoil", [short, changed])
@pytest.mark.parametrize(
    "args",
    [
        ("report", "bert-pruned"),
        ("diff", "bert-pruned", "bert-pruned"),
        ("eval", "bert-pruned", "--latency-runs", "0"),
        ("profile", "bert-pruned"),
        ("export", "bert-pruned", "--to", "onnx"),
    ],
    ids=lambda args: args[0] if isinstance(args, tuple) else "",
)
def test_weights_that_a_record_does_not_certify_are_refused(desk, args, spoil):
    desk.take("bert-pruned")
    spoil(desk.folder / "bert-pruned")
    refused(desk.folder, args, 1, ["bert-pruned", "sha256 differs", "optin.json"])


def test_weights_that_were_trained_further_are_taken_without_the_record(desk):
    desk.take("bert-pruned")
    changed(desk.folder / "bert-pruned")
    (desk.folder / "bert-pruned/optin.json").unlink()
    done("profile", "bert-pruned")


# Links and names that lead out of a folder


def test_what_a_link_leads_to_is_not_copied(desk):
    desk.take("bert", "bert.mask.json", "texts.jsonl")
    (desk.folder / "secret").write_text("key")
    (desk.folder / "bert/LICENSE").symlink_to(desk.folder / "secret")
    refused(desk.folder, PRUNE, 1, ["bert/LICENSE is a link to", "secret"])


def test_links_in_a_hubs_cache_are_followed(desk):
    desk.take("bert", "bert.mask.json")
    place = desk.folder / "models--me--bert"
    (place / "blobs").mkdir(parents=True)
    (place / "snapshots/main").mkdir(parents=True)
    for number, path in enumerate(sorted((desk.folder / "bert").iterdir())):
        shutil.move(path, place / f"blobs/{number}")
        (place / "snapshots/main" / path.name).symlink_to(f"../../blobs/{number}")
    done("prune", place / "snapshots/main", "--mask", "bert.mask.json", "--no-refit", "-o", "cut")
    assert (desk.folder / "cut/tokenizer.json").is_file() and not (desk.folder / "cut/tokenizer.json").is_symlink()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", 7])
def test_an_index_names_files_beside_it(desk, name):
    desk.take("bert", "other")
    (desk.folder / "bert/model.safetensors").unlink()
    index = desk.folder / "bert/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": name}}))
    refused(desk.folder, ["profile", "bert"], 1, ["index.json names", "not the name of a file beside it"])


# What artifacts say of a model is compared with it


@pytest.mark.parametrize(
    "workload",
    [
        {"batch_size": 1, "seq_len": 1000},
        {"batch_size": 4096, "seq_len": 16},
        {"batch_size": 1, "image": [3, 24, 24]},
    ],
    ids=str,
)
def test_a_mask_states_costs_for_what_the_model_takes(desk, workload):
    desk.take("bert", "bert.mask.json")
    desk.edit("bert.mask.json", lambda raw: raw.update(workload=workload))
    refused(desk.folder, PRUNE, 1, ["bert.mask.json states costs for batch", "it takes"])


def test_an_edited_mask_reaches_what_it_keeps(desk):
    desk.take("bert", "bert.mask.json")
    desk.edit("bert.mask.json", lambda raw: raw["groups"]["encoder.1.neuron"].update(kept=[0, 1]))
    done(*PRUNE, "-o", "cut")
    record = json.loads((desk.folder / "cut/optin.json").read_text())
    assert record["budget"]["reached"]["macs"] == pytest.approx(
        record["after"]["macs"] / record["before"]["macs"], 1e-3
    )


def test_a_card_of_aliases_is_passed_over(desk):
    desk.take("bert", "bert.mask.json")
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else ['x'])}]" for n in range(9)]
    (desk.folder / "bert/README.md").write_text(
        "---\n" + "\n".join([*levels, "license: *a8", "language: en"]) + "\n---\n"
    )
    done(*PRUNE, "-o", "cut")
    card = (desk.folder / "cut/README.md").read_text()
    assert "language: en" in card and "license:" not in card.partition("\n---")[0]


def test_what_a_killed_run_left_is_not_reported(desk):
    desk.take("bert-pruned")
    shutil.copytree(desk.folder / "bert-pruned", desk.folder / ".bert-pruned.abcd.tmp")
    done("report", ".", "-o", "page.html")


# Two runs, one output


def test_the_second_of_two_runs_leaves_the_first_ones_output(desk, monkeypatch):
    from optin_cli.pruning import prune as stage

    desk.take("bert", "bert.mask.json")
    write = stage.write_card

    def overtaken(*args):
        if not os.path.lexists("cut"):
            shutil.copytree(desk.made.pruned, "cut")
        return write(*args)

    monkeypatch.setattr(stage, "write_card", overtaken)
    result = call(*PRUNE, "-o", "cut")
    assert result.code == 1 and "cut was written by another process meanwhile" in result.err
    assert tree(desk.folder / "cut") == tree(desk.made.pruned)
    assert sorted(path.name for path in desk.folder.iterdir()) == ["bert", "bert.mask.json", "cut"]


# Tokenizers


def other_model(raw):
    raw["model"]["type"] = "Nope"


def beyond(raw):
    raw["model"]["vocab"]["a"] = 500


def no_model(raw):
    raw["model"] = 3


def unknown_special(raw):
    raw["post_processor"]["special_tokens"].popitem()


@pytest.mark.parametrize("change", [other_model, beyond, no_model, unknown_special])
def test_unfit_tokenizers_are_refused(desk, change):
    desk.take("bert", "texts.jsonl")
    desk.edit("bert/tokenizer.json", change)
    refused(desk.folder, [*SCORE, "texts.jsonl", *QUICK], 1, ["tokenizer", "bert"])


@pytest.mark.parametrize("value", ["many", -1, float("nan"), [1]], ids=str)
def test_unfit_lengths_are_refused(desk, value):
    desk.take("bert", "texts.jsonl")
    path = desk.folder / "bert/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": value}))
    refused(desk.folder, [*SCORE, "texts.jsonl", *QUICK], 1, ["tokenizer", "bert"])
