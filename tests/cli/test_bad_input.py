"""Every bad input gets one clear message and an exit status, and leaves the disk as it was."""

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from helpers.running import QUICK, call, done, tree
from safetensors import SafetensorError
from safetensors.torch import load_file, save

SCORE = ("score", "bert", "--calib")


class Desk:
    """A working directory that holds the session's files under their own names, to be spoiled one by one."""

    def __init__(self, folder: Path, made: SimpleNamespace) -> None:
        self.folder, self.made = folder, made

    def take(self, *names: str) -> None:
        for name in names:
            source, target = self.made.root / name, self.folder / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    def config(self, **changes) -> None:
        self.edit("bert/config.json", lambda raw: raw.update(changes))

    def edit(self, name: str, change) -> None:
        path = self.folder / name
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    def weights(self, change, name: str = "bert/model.safetensors") -> None:
        """Change the tensors of a file, keeping its header."""
        path = self.folder / name
        size = int.from_bytes(path.read_bytes()[:8], "little")
        metadata = json.loads(path.read_bytes()[8 : 8 + size]).get("__metadata__")
        state = load_file(path)
        change(state)
        path.write_bytes(save(state, metadata=metadata))


@pytest.fixture
def desk(here, made):
    return Desk(here, made)


def refused(folder, args, code, words, **options):
    """Run; check the status, the message, and that nothing was written."""
    before = tree(folder)
    result = call(*args, **options)
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.count("error: ") == 1
    assert "Traceback" not in result.err and "defect of optin:" not in result.err, result.err
    missing = [word for word in words if word not in result.err]
    assert not missing, f"{missing} not in:\n{result.err}"
    assert tree(folder) == before
    return result


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
    "no task": (lambda desk: desk.take("bert", "train.jsonl"), ["--data", "train.jsonl"], ["no task", "--task"]),
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
        ("bert.scores.safetensors", b"", ["bert.scores.safetensors", "JSON"]),
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
        ("bert", b"", ["bert", "Is a directory"]),
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
    "unknown command": (["shrink"], ["shrink"]),
    "unknown option": (["profile", "bert", "--fast"], ["--fast", "--help"]),
    "no checkpoint": (["profile"], ["CKPT", "--help"]),
    "no mask": (["prune", "bert"], ["--mask"]),
    "not a number": ([*SCORE, "texts.jsonl", "--samples", "many"], ["--samples", "integer"]),
    "no samples": ([*SCORE, "texts.jsonl", "--samples", "0"], ["samples is 0"]),
    "no probes": ([*SCORE, "texts.jsonl", "--probes", "0"], ["probes is 0"]),
    "no temperature": ([*SCORE, "texts.jsonl", "--tau", "0"], ["temperature is 0"]),
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
    "optin by parameters": ([*SEARCH, "--keep-params", "0.6", "--algorithm", "optin"], ["optin", "FLOP"]),
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


# Outputs that cannot be written


WRITERS = {
    "profile": ["profile", "bert", "-o", "bert.profile.json"],
    "score": [*SCORE, "texts.jsonl", *QUICK],
    "search": ["search", "bert.scores.safetensors", "--keep-flops", "0.6"],
    "prune": ["prune", "bert", "--mask", "bert.mask.json"],
    "eval": ["eval", "bert-pruned", "--latency-runs", "0"],
}
OUTPUTS = {
    "profile": "bert.profile.json",
    "score": "bert.scores.safetensors",
    "search": "bert.mask.json",
    "prune": "bert-pruned",
    "eval": "bert-pruned.eval.json",
}
writers = pytest.mark.parametrize("name", WRITERS)


@contextlib.contextmanager
def failing(place, error):
    """Calling `place` raises; "a write" stands for writing any whole file."""
    places = ["pathlib.Path.write_text", "pathlib.Path.write_bytes"] if place == "a write" else [place]
    with contextlib.ExitStack() as stack:
        for name in places:
            stack.enter_context(patch(name, side_effect=error))
        yield


@contextlib.contextmanager
def no_work():
    """Nothing may be loaded or read: an output is refused before any time is spent."""
    with (
        patch("optin_cli.checkpoints.checkpoint.load", side_effect=AssertionError("loaded")),
        patch("optin_cli.artifacts.scores.read_scores", side_effect=AssertionError("read")),
    ):
        yield


@writers
def test_an_existing_output_is_refused_before_any_work(desk, name):
    desk.take("bert", "texts.jsonl", *OUTPUTS.values())
    with no_work():
        refused(desk.folder, WRITERS[name], 1, [OUTPUTS[name], "already exists", "--force"])


@writers
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("none/out", ["none", "does not exist"]),
        ("texts.jsonl/out", ["texts.jsonl", "not a folder"]),
        ("texts.jsonl/deeper/out", ["texts.jsonl/deeper"]),
        ("o" * 300, ["ooo", "File name too long"]),
    ],
    ids=["missing", "file", "below a file", "long name"],
)
def test_an_unwritable_output_is_refused_before_any_work(desk, name, target, words):
    desk.take("bert", "texts.jsonl", *OUTPUTS.values())
    args = WRITERS[name] if name != "profile" else WRITERS[name][:2]
    with no_work():
        refused(desk.folder, [*args, "-o", target], 1, words)


@pytest.mark.parametrize("name", ["profile", "score", "search", "eval"])
def test_a_file_does_not_replace_a_folder(desk, name):
    desk.take("bert", "texts.jsonl", *OUTPUTS.values())
    args = WRITERS[name] if name != "profile" else WRITERS[name][:2]
    with no_work():
        refused(desk.folder, [*args, "-o", "bert", "--force"], 1, ["bert", "folder"])


def test_several_masks_need_a_place(desk):
    desk.take("bert.scores.safetensors")
    args = ["search", "bert.scores.safetensors", "--keep-flops", "0.6,0.7", "-o", "none/masks"]
    refused(desk.folder, args, 1, ["none", "does not exist"])


def test_demo_keeps_out_of_a_folder_in_use(desk):
    desk.take("bert")
    for folder, words in [("bert", ["bert already exists", "--force"]), ("none/demo", ["none", "does not exist"])]:
        refused(desk.folder, ["demo", folder], 1, words)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_FOR_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("name", "place", "error"),
    [
        ("profile", "a write", FULL),
        ("score", "optin_cli.scoring.accumulate.save_file", FULL_FOR_SAFETENSORS),
        ("score", "a write", FULL),
        ("search", "a write", FULL),
        ("prune", "optin_cli.pruning.prune.save_cut", FULL),
        ("prune", "transformers.PreTrainedModel.save_pretrained", FULL_FOR_SAFETENSORS),
        ("prune", "a write", FULL),
        ("eval", "a write", FULL),
    ],
)
def test_a_full_disk_is_said_and_leaves_nothing(desk, name, place, error):
    desk.take("bert", "texts.jsonl", *(o for stage, o in OUTPUTS.items() if stage != name))
    # Magnitude keeps no state of finished batches, so that the first thing written is the scores file.
    extra = ["--criterion", "magnitude"] if (name, place) == ("score", "a write") else []
    with failing(place, error):
        refused(desk.folder, [*WRITERS[name], *extra], 1, ["No space is left", OUTPUTS[name]])


@pytest.mark.parametrize("name", ["profile", "score", "prune", "eval"])
def test_a_write_cut_short_is_said_and_leaves_nothing(desk, name):
    desk.take("bert", "texts.jsonl", *(o for stage, o in OUTPUTS.items() if stage != name))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        refused(desk.folder, WRITERS[name], 1, [OUTPUTS[name], "cannot be written", "File too large"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Ctrl-C, wherever it falls


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("profile", "optin_cli.checkpoints.checkpoint.read_state"),
        ("profile", "optin_cli.profiling.profile.measure_costs"),
        ("profile", "a write"),
        ("score", "optin_cli.data.text.samples.read_path"),
        ("score", "optin_cli.checkpoints.inputs.TextInput.tokenizer"),
        ("score", "optin_cli.scoring.one_shot.sketch_batch"),
        ("search", "optin_cli.artifacts.scores.read_bytes"),
        ("search", "optin_cli.searching.choose.choose_units"),
        ("search", "pathlib.Path.replace"),
        ("prune", "optin_cli.pruning.prune.cut"),
        ("prune", "optin_cli.checkpoints.save.modeling_source"),
        ("prune", "optin_cli.checkpoints.verify.fresh_process"),
        ("prune", "optin_cli.pruning.model_card.write_card"),
        ("prune", "pathlib.Path.replace"),
        ("eval", "optin_cli.evaluation.evaluate.count_macs"),
        ("eval", "a write"),
    ],
)
def test_an_interruption_anywhere_exits_130_and_leaves_nothing(desk, name, place):
    desk.take("bert", "texts.jsonl", *(o for stage, o in OUTPUTS.items() if stage != name))
    before = tree(desk.folder)
    with failing(place, KeyboardInterrupt):
        result = call(*WRITERS[name])
    assert (result.code, result.out) == (130, "")
    assert "Interrupted" in result.err and "Traceback" not in result.err
    assert tree(desk.folder) == before


def test_interrupted_replacement_keeps_the_old_output(desk):
    desk.take("bert", "texts.jsonl", *OUTPUTS.values())
    before = tree(desk.folder)
    for name in ("profile", "search", "prune", "eval"):
        with failing("a write", KeyboardInterrupt):
            assert call(*WRITERS[name], "--force").code == 130
        assert tree(desk.folder) == before


# What remains when optin itself is wrong


def test_failed_certificates_leave_nothing(desk):
    desk.take("bert", "bert.mask.json")
    wrong = {"logits": torch.zeros(4, 2)}
    with patch("optin_cli.pruning.prune.run_probe_fresh", return_value=wrong):
        refused(desk.folder, ["prune", "bert", "--mask", "bert.mask.json"], 1, ["outputs differ by", "tolerance"])
    with patch("optin_cli.checkpoints.verify.RELOAD", "raise SystemExit('this is why')"):
        words = ["does not load in a fresh process", "this is why"]
        refused(desk.folder, ["prune", "bert", "--mask", "bert.mask.json"], 1, words)


def test_defects_are_named_and_traced_on_request(desk, monkeypatch):
    desk.take("bert")
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=ZeroDivisionError("oh")):
        result = call("profile", "bert")
        assert result.code == 1
        assert "defect of optin: ZeroDivisionError: oh" in result.err and "OPTIN_DEBUG=1" in result.err
        assert "Traceback" not in result.err
        monkeypatch.setenv("OPTIN_DEBUG", "1")
        assert "Traceback" in call("profile", "bert").err
    with patch("optin_cli.checkpoints.checkpoint.load", side_effect=MemoryError):
        assert "Not enough memory" in call("profile", "bert").err
