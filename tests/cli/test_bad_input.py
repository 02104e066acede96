"""Every bad input gets one clear message and an exit status, and leaves the disk as it was."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.desk import SCORE, refused
from helpers.running import QUICK, call, done


def cases(table):
    return pytest.mark.parametrize(("spoil", "args", "words"), [pytest.param(*v, id=k) for k, v in table.items()])


class Bomb:
    """Unpickling this makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def nothing(desk):
    desk.take("bert")


def truncate(desk):
    desk.take("bert")
    path = desk.folder / "bert/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def bomb(desk):
    desk.take("bert")
    torch.save({"weight": torch.ones(2), "more": Bomb()}, "bomb.pt")


def old_bomb(desk):
    desk.take("bert")
    (desk.folder / "bert/model.safetensors").unlink()
    Path("bert/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def without(*names):
    def spoil(desk):
        desk.take("bert")
        for name in names:
            (desk.folder / "bert" / name).unlink()

    return spoil


def config(**changes):
    def spoil(desk):
        desk.take("bert")
        desk.config(**changes)

    return spoil


def weights(change):
    def spoil(desk):
        desk.take("bert")
        desk.weights(change)

    return spoil


def written(name, content):
    def spoil(desk):
        desk.take("bert", "train.jsonl")
        path = desk.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def broken_value(value):
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    return lambda state: state[name].__setitem__((0, 0), value)


CHECKPOINTS = {
    "missing folder": (nothing, ["nowhere"], ["nowhere", "does not exist"]),
    "empty folder": (lambda desk: (desk.folder / "bert").mkdir(), ["bert"], ["bert", "config.json", "found nothing"]),
    "truncated safetensors": (truncate, ["bert"], ["model.safetensors", "not a complete safetensors", "cut short"]),
    "empty weights": (written("bert/model.safetensors", b""), ["bert"], ["model.safetensors", "empty"]),
    "pickle with code": (bomb, ["bomb.pt", "--arch", "bert"], ["bomb.pt", "more than tensors", "could run code"]),
    "pickled folder": (old_bomb, ["bert"], ["pytorch_model.bin", "more than tensors"]),
    "not a torch file": (written("x.pt", b"hello"), ["x.pt", "--arch", "bert"], ["x.pt"]),
    "config without weights": (without("model.safetensors"), ["bert"], ["no weights", "config.json", "model.safetens"]),
    "weights without config": (without("config.json"), ["bert"], ["has no config.json", "model.safetensors"]),
    "config not JSON": (written("bert/config.json", "{"), ["bert"], ["config.json", "not valid JSON"]),
    "config of nothing": (written("bert/config.json", "{}"), ["bert"], ["config.json", "model_type"]),
    "unknown architecture": (
        config(model_type="brt"),
        ["bert"],
        ["'brt'", "Did you mean bert", "--architecture", "JSON file"],
    ),
    "unknown head": (config(architectures=["BertForPreTraining"]), ["bert"], ["BertForPreTraining"]),
    "other sizes": (config(intermediate_size=48), ["bert"], ["bert", "BertForSequenceClassification"]),
    "missing weights": (
        weights(lambda state: state.pop("bert.encoder.layer.1.output.dense.weight")),
        ["bert"],
        ["1 weight", "bert.encoder.layer.1.output.dense.weight"],
    ),
    "NaN in weights": (weights(broken_value(torch.nan)), ["bert"], ["NaN", "layer.1.intermediate.dense.weight"]),
    "infinite weights": (weights(broken_value(torch.inf)), ["bert"], ["infinite", "layer.1.intermediate"]),
    "config nested deeply": (written("bert/config.json", "[" * 100_000), ["bert"], ["config.json", "nested more than"]),
    "key given twice": (
        written("bert/config.json", '{"model_type": "bert", "model_type": "vit"}'),
        ["bert"],
        ["config.json", "'model_type' is given twice"],
    ),
    "architectures of a number": (config(architectures=1), ["bert"], ["bert/config.json"]),
    "architectures of numbers": (config(architectures=[-1]), ["bert"], ["model class -1"]),
    "unknown type": (config(dtype="float33"), ["bert"], ["bert"]),
    "no heads": (config(num_attention_heads=0), ["bert"], ["bert"]),
    "padding beyond the vocabulary": (config(pad_token_id=10**6), ["bert"], ["bert"]),
    "a million layers": (config(num_hidden_layers=10**6), ["bert"], ["1000000 layers", "tensors"]),
    "a picture": (written("bert.png", b"x"), ["bert.png"], ["bert.png", ".safetensors"]),
    "a plan of another": (config(optin_plan={"x": 1}), ["bert"], ["bert"]),
    "bad description": (
        written("my.json", '{"family": "bert"}'),
        ["bert", "--architecture", "my.json"],
        ["my.json", "model_types"],
    ),
}


@cases(CHECKPOINTS)
def test_unfit_checkpoints_are_refused(desk, spoil, args, words):
    spoil(desk)
    refused(desk.folder, ["profile", *args], 1, words)


def row(**values):
    return json.dumps(values) + "\n"


BAD_DATA = {
    "unknown task": (nothing, ["sst-2"], ["sst-2", "Did you mean sst2"]),
    "unreachable task": (nothing, ["sst2"], ["neither in the local cache nor reachable", "local copy", "--data"]),
    "missing data": (nothing, ["sst2", "--data", "nowhere.jsonl"], ["nowhere.jsonl", "does not exist"]),
    "empty calibration": (written("c.jsonl", ""), ["c.jsonl"], ["c.jsonl", "no rows"]),
    "blank calibration": (written("c.txt", "\n \n"), ["c.txt"], ["c.txt", "no rows"]),
    "header alone": (written("c.csv", "text,label\n"), ["c.csv"], ["c.csv", "no rows"]),
    "empty data folder": (lambda desk: (desk.take("bert"), Path("c").mkdir()), ["c"], ["holds no data files", "train"]),
    "no text column": (written("c.jsonl", row(body="a", mark=1)), ["c.jsonl"], ["body, mark", "--text-columns"]),
    "missing text column": (
        written("c.jsonl", row(body="a", mark=1)),
        ["c.jsonl", "--text-columns", "headline"],
        ["headline", "body, mark"],
    ),
    "missing task column": (
        written("c.jsonl", row(body="a", mark=1)),
        ["sst2", "--data", "c.jsonl"],
        ["'sentence'", "body, mark"],
    ),
    "missing label column": (
        written("c.jsonl", row(text="a", mark=1)),
        ["c.jsonl", "--label-column", "verdict"],
        ["verdict", "text, mark"],
    ),
    "no JSON": (written("c.jsonl", row(text="a") + "{"), ["c.jsonl"], ["c.jsonl", "line 2"]),
    "no text": (written("c.jsonl", row(text="a") + row(text=3)), ["c.jsonl"], ["Row 2", "'text'", "3"]),
    "no UTF-8": (written("c.txt", b"\xff\xfe\xfa"), ["c.txt"], ["c.txt", "UTF-8"]),
    "unreadable parquet": (written("c.parquet", b"hello"), ["c.parquet"], ["c.parquet", "Parquet"]),
    "fisher without labels": (
        written("c.jsonl", row(text="a")),
        ["c.jsonl", "--criterion", "fisher"],
        ["fisher", "label"],
    ),
    "no tokenizer": (
        lambda desk: (without("tokenizer.json", "tokenizer_config.json")(desk), desk.take("texts.jsonl")),
        ["texts.jsonl"],
        ["tokenizer"],
    ),
}


@cases(BAD_DATA)
def test_unfit_calibration_data_is_refused(desk, spoil, args, words):
    spoil(desk)
    refused(desk.folder, [*SCORE, *args], 1, words)


EVALUATIONS = {
    "unknown task": (nothing, ["--task", "colla"], ["colla", "Did you mean cola"]),
    "unreachable task": (nothing, ["--task", "mrpc"], ["neither in the local cache nor reachable", "--data"]),
    "nothing to measure by": (
        lambda desk: desk.take("bert", "texts.jsonl"),
        ["--task", "sst2", "--data", "texts.jsonl"],
        ["no labels", "--against"],
    ),
    "neither task nor labels": (
        lambda desk: desk.take("bert", "texts.jsonl"),
        ["--data", "texts.jsonl"],
        ["no labels", "--label-column", "--against"],
    ),
    "task without data": (nothing, ["--task", "regression"], ["regression has no data of its own", "--data PATH"]),
    "labels in part": (
        written("d.jsonl", row(sentence="a", label=1) + row(sentence="b", label=-1)),
        ["--task", "sst2", "--data", "d.jsonl"],
        ["d.jsonl", "row 2"],
    ),
    "unknown class": (
        written("d.jsonl", row(sentence="a", label=7)),
        ["--task", "sst2", "--data", "d.jsonl"],
        ["7", "2 classes"],
    ),
    "task of another kind": (
        written("d.jsonl", row(sentence1="a", sentence2="b", label=0.5)),
        ["--task", "stsb", "--data", "d.jsonl"],
        ["stsb", "regression"],
    ),
    "missing other": (nothing, ["--against", "nowhere"], ["nowhere"]),
}


@cases(EVALUATIONS)
def test_evaluations_that_cannot_be_are_refused(desk, spoil, args, words):
    spoil(desk)
    refused(desk.folder, ["eval", "bert", "--latency-runs", "0", *args], 1, words)


@pytest.mark.parametrize("criterion", ["magnitude", "trajectory", "fisher"])
def test_scores_that_are_not_finite_name_the_layer(desk, criterion):
    desk.take("bert", "train.jsonl")
    desk.weights(lambda state: [tensor.fill_(3e38) for name, tensor in state.items() if "layer.1" in name])
    args = [*SCORE, "train.jsonl", *QUICK, "--criterion", criterion]
    refused(desk.folder, args, 1, ["encoder.", "not finite", "too large for 32 bits"])


def head(mask):
    return mask["groups"]["encoder.0.head"]


MASKS = {
    "out of range": (lambda mask: head(mask).update(kept=[0, 4]), ["encoder.0.head", "index 4 is out of range"]),
    "negative": (lambda mask: head(mask).update(kept=[-1, 2]), ["encoder.0.head", "-1", "out of range"]),
    "duplicate": (lambda mask: head(mask).update(kept=[1, 1, 2]), ["encoder.0.head", "index 1", "more than once"]),
    "disorder": (lambda mask: head(mask).update(kept=[2, 1]), ["encoder.0.head", "ascending"]),
    "other size": (lambda mask: head(mask).update(units=12), ["encoder.0.head", "12 units", "4"]),
    "no index": (lambda mask: head(mask).update(kept=["a"]), ["encoder.0.head", "integer"]),
    "unknown group": (
        lambda mask: mask["groups"].update({"encoder.0.heads": mask["groups"].pop("encoder.0.head")}),
        ["encoder.0.heads", "Did you mean encoder.0.head"],
    ),
    "unknown key": (lambda mask: mask.update(comment="mine"), ["comment"]),
    "other schema": (lambda mask: mask.update(schema="optin.mask/9"), ["optin.mask/9", "optin.mask/1"]),
    "no origin": (lambda mask: mask["inputs"].clear(), ["checkpoint", "something unnamed"]),
    "all wrong at once": (
        lambda mask: (head(mask).update(kept=[9]), mask["groups"]["encoder.1.head"].update(kept=[8])),
        ["encoder.0.head", "index 9", "encoder.1.head", "index 8"],
    ),
}


@pytest.mark.parametrize(("change", "words"), MASKS.values(), ids=MASKS)
def test_invalid_masks_are_refused(desk, change, words):
    desk.take("bert", "bert.mask.json")
    desk.edit("bert.mask.json", change)
    refused(desk.folder, ["prune", "bert", "--mask", "bert.mask.json"], 1, ["bert.mask.json", *words])


@pytest.mark.parametrize(
    ("mask", "stdin", "words"),
    [
        ("none.mask.json", b"", ["none.mask.json", "does not exist"]),
        ("bert.scores.safetensors", b"", ["bert.scores.safetensors is a safetensors file", "expected a mask file"]),
        ("bert-pruned.eval.json", b"", ["an? eval file", "expected a mask"]),
        ("-", b"", ["Standard input is empty", "mask"]),
        ("-", b"hello", ["stdin", "not valid JSON"]),
    ],
)
def test_files_that_are_no_masks_are_refused(desk, mask, stdin, words):
    desk.take("bert", "bert.scores.safetensors", "bert-pruned.eval.json")
    result = refused(desk.folder, ["prune", "bert", "--mask", mask], 1, [], stdin=stdin)
    assert all(re.search(word, result.err) for word in words), result.err


def test_a_mask_of_another_checkpoint_is_refused(desk):
    desk.take("bert", "other", "bert.mask.json")
    words = ["bert.mask.json was made from checkpoint bert", "other (sha256", "make the mask again"]
    refused(desk.folder, ["prune", "other", "--mask", "bert.mask.json"], 1, words)


def test_the_state_of_another_run_is_not_resumed(desk):
    desk.take("bert", "other", "texts.jsonl")
    args = ["--calib", "texts.jsonl", *QUICK, "-o", "s.safetensors"]
    with patch("optin_cli.artifacts.scores.write_scores", side_effect=KeyboardInterrupt):
        assert call("score", "bert", *args).code == 130
    assert Path("s.safetensors.partial").is_file()
    for change in (["score", "other", *args], ["score", "bert", *args, "--seed", "1"]):
        refused(desk.folder, [*change, "--resume"], 1, ["s.safetensors.partial", "other options", "--resume"])


SCORE_FILES = {
    "NaN": ("bert.scores.safetensors", lambda s: broken_score(s, torch.nan), ["encoder.1.neuron.3", "nan", "finite"]),
    "infinity": ("bert.scores.safetensors", lambda s: broken_score(s, torch.inf), ["encoder.1.neuron.3", "inf"]),
    "missing vector": (
        "bert.scores.safetensors",
        lambda s: s.pop("importance.encoder.0.head"),
        ["importance.encoder.0.head", "missing", "4 numbers"],
    ),
    "weights": (
        "bert/model.safetensors",
        lambda _: None,
        ["model.safetensors", "without an optin header", "optin score"],
    ),
}


def broken_score(state, value):
    state["importance.encoder.1.neuron"][3] = value


@pytest.mark.parametrize(("name", "change", "words"), SCORE_FILES.values(), ids=SCORE_FILES)
@pytest.mark.parametrize("command", [["search", "--keep-flops", "0.6"], ["inspect"]], ids=["search", "inspect"])
def test_invalid_score_files_are_refused(desk, command, name, change, words):
    desk.take("bert", "bert.scores.safetensors")
    desk.weights(change, name)
    refused(desk.folder, [*command, name], 1, words)


@pytest.mark.parametrize(
    ("source", "stdin", "words"),
    [
        ("none.safetensors", b"", ["none.safetensors does not exist"]),
        ("bert.mask.json", b"", ["bert.mask.json", "not a complete safetensors file"]),
        ("bert", b"", ["bert is a folder", "expected a scores file", "optin score"]),
        ("-", b"", ["Standard input is empty"]),
        ("-", b"hello", ["standard input", "not a complete safetensors file"]),
    ],
)
def test_files_that_are_no_scores_are_refused(desk, source, stdin, words):
    desk.take("bert", "bert.mask.json")
    refused(desk.folder, ["search", source, "--keep-flops", "0.6", "-o", "m.json"], 1, words, stdin=stdin)


@pytest.mark.parametrize("option", ["--keep-flops", "--keep-params"])
@pytest.mark.parametrize("extra", [[], ["--min-heads", "2"], ["--protect", "encoder.1.*"], ["--round-to", "16"]])
def test_budget_below_the_minimum_states_it(desk, option, extra):
    desk.take("bert.scores.safetensors")
    args = ["search", "bert.scores.safetensors", *extra, "-o", "m.json", option]
    result = refused(desk.folder, [*args, "0.0001"], 1, ["0.0001", "smallest reachable share"])
    least = re.search(r"share is (0\.\d+)", result.err)[1]
    refused(desk.folder, [*args, f"{float(least) - 0.0001:.4f}"], 1, [least])
    done(*args, least)


def test_no_mask_is_written_when_one_of_several_budgets_cannot_be_met(desk):
    desk.take("bert.scores.safetensors")
    args = ["search", "bert.scores.safetensors", "--keep-flops", "0.6,0.0001"]
    for extra in ([], ["-o", "masks"]):
        refused(desk.folder, [*args, *extra], 1, ["smallest reachable share"])


INSPECTED = {
    "missing": (nothing, ["none.json"], ["none.json does not exist"]),
    "a checkpoint": (nothing, ["bert"], ["bert", "no optin.json", "optin profile"]),
    "other JSON": (nothing, ["bert/config.json"], ["schema None", "optin.mask/1"]),
    "text": (written("notes.txt", "hello"), ["notes.txt"], ["notes.txt", "JSON"]),
    "a list": (written("list.json", "[1]"), ["list.json"], ["list.json", "schema None"]),
}


@cases(INSPECTED)
def test_files_that_are_no_artifacts_are_not_inspected(desk, spoil, args, words):
    spoil(desk)
    refused(desk.folder, ["inspect", *args], 1, words)


SEARCH = ("search", "s.safetensors")
USAGE = {
    "unknown command": (["squash"], ["squash"]),
    "unknown option": (["profile", "bert", "--fast"], ["--fast", "--help"]),
    "no checkpoint": (["profile"], ["CKPT", "--help"]),
    "no mask": (["prune", "bert"], ["--mask"]),
    "not a number": ([*SCORE, "texts.jsonl", "--samples", "many"], ["--samples", "not a whole number"]),
    "no samples": ([*SCORE, "texts.jsonl", "--samples", "0"], ["samples is 0"]),
    "no probes": ([*SCORE, "texts.jsonl", "--probes", "0"], ["probes is 0"]),
    "no temperature": ([*SCORE, "texts.jsonl", "--tau", "0"], ["--tau is 0"]),
    "negative weight": ([*SCORE, "texts.jsonl", "--lambda", "-1"], ["-1"]),
    "unknown criterion": ([*SCORE, "texts.jsonl", "--criterion", "trajectry"], ["trajectry", "mean trajectory"]),
    "unknown estimator": ([*SCORE, "texts.jsonl", "--estimator", "exct"], ["exct", "Did you mean exact"]),
    "no calibration": (["score", "bert"], ["trajectory", "--calib"]),
    "too long": ([*SCORE, "texts.jsonl", "--max-length", "4096"], ["4096", "--max-length"]),
    "no room": ([*SCORE, "texts.jsonl", "--max-length", "2"], ["2", "3"]),
    "two sources": ([*SCORE, "texts.jsonl", "--data", "train.jsonl"], ["texts.jsonl", "train.jsonl"]),
    "three columns": ([*SCORE, "texts.jsonl", "--text-columns", "a,b,c"], ["3 text columns"]),
    "long sequence": (["profile", "bert", "--seq-len", "4096"], ["4096", "160"]),
    "no sequence": (["profile", "bert", "--seq-len", "0"], ["0", "160"]),
    "unknown device": (["profile", "bert", "--device", "abacus"], ["abacus"]),
    "no architecture": (["profile", "loose.safetensors"], ["loose.safetensors", "--arch"]),
    "missing weights file": (["profile", "none.pt", "--arch", "bert"], ["none.pt is not a file"]),
    "two configs": (["profile", "bert", "--arch", "bert"], ["--arch", "not a file"]),
    "budget beyond all": ([*SEARCH, "--keep-flops", "1.1"], ["1.1", "at most 1"]),
    "endless budget": ([*SEARCH, "--keep-flops", "inf"], ["inf"]),
    "absurd probes": ([*SCORE, "texts.jsonl", "--probes", "1000000000"], ["probes", "at most"]),
    "absurd batch": ([*SCORE, "texts.jsonl", "--batch-size", "1000000000"], ["--batch-size", "at most"]),
    "no latency batch": (["eval", "bert", "--latency-batch", "0"], ["--latency-batch is 0"]),
    "absurd runs": (["eval", "bert", "--latency-runs", "1000000000"], ["--latency-runs", "at most"]),
    "absurd threads": (["eval", "bert", "--threads", "99999999999999999999"], ["--threads", "at most 4,096"]),
    "ridge of nothing": (
        ["prune", "bert", "--mask", "m.json", "--calib", "texts.jsonl", "--refit-ridge", "nan"],
        ["ridge is nan"],
    ),
    "temperature without end": ([*SCORE, "texts.jsonl", "--tau", "inf"], ["--tau is inf"]),
    "no budget": ([*SEARCH], ["--keep-flops"]),
    "budget in words": ([*SEARCH, "--keep-flops", "half"], ["--keep-flops", "half"]),
    "budget of zero": ([*SEARCH, "--keep-flops", "0"], ["0", "at most 1"]),
    "budget in percent": ([*SEARCH, "--keep-flops", "50"], ["50", "at most 1"]),
    "budget of nothing": ([*SEARCH, "--keep-flops", "nan"], ["nan"]),
    "lists of two lengths": ([*SEARCH, "--keep-flops", "0.6,0.7", "--keep-params", "0.6,0.7,0.8"], ["2", "3"]),
    "same budget twice": ([*SEARCH, "--keep-flops", "0.6,0.6"], ["twice"]),
    "several to one stdout": ([*SEARCH, "--keep-flops", "0.6,0.7", "-o", "-"], ["stdout", "FOLDER"]),
    "several to one file": ([*SEARCH, "--keep-flops", "0.6,0.7", "-o", "train.jsonl"], ["train.jsonl", "folder"]),
    "unknown algorithm": ([*SEARCH, "--keep-flops", "0.6", "--algorithm", "greedy"], ["greedy", "exact"]),
    "optin by parameters": ([*SEARCH, "--keep-params", "0.6", "--algorithm", "optin"], ["--algorithm paper", "FLOP"]),
    "unknown protégé": ([*SEARCH, "--keep-flops", "0.6", "--protect", "encoder.7.*"], ["encoder.7.*"]),
    "no rounding": ([*SEARCH, "--keep-flops", "0.6", "--round-to", "0"], ["--round-to"]),
    "folder to stdout": (["prune", "bert", "--mask", "m.json", "-o", "-"], ["stdout", "-o FOLDER"]),
    "gate on nothing": (["eval", "bert", "--max-drop", "0.01", "--latency-runs", "0"], ["--max-drop", "--against"]),
    "negative runs": (["eval", "bert", "--latency-runs", "-1"], ["-1"]),
}


@pytest.mark.parametrize(("args", "words"), USAGE.values(), ids=USAGE)
def test_wrong_usage_exits_2_and_names_what_was_wrong(desk, args, words):
    desk.take("bert", "train.jsonl", "texts.jsonl")
    loose = {"bert/model.safetensors": "loose.safetensors", desk.made.scores: "s.safetensors", desk.made.mask: "m.json"}
    for source, target in loose.items():
        shutil.copyfile(source, target)
    refused(desk.folder, args, 2, words)
