"""Outputs that cannot be written, interruptions and defects: each is said, and the disk stays as it was."""

import contextlib
import errno
import os
import resource
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers.desk import SCORE, refused
from helpers.running import QUICK, call, tree
from safetensors import SafetensorError

from optin_cli import files

WRITERS = {
    "profile": ["profile", "bert", "-o", "bert.profile.json"],
    "score": [*SCORE, "texts.jsonl", *QUICK],
    "search": ["search", "bert.scores.safetensors", "--keep-flops", "0.6"],
    "prune": ["prune", "bert", "--mask", "bert.mask.json", "--no-refit"],
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
        ("profile", "optin_cli.checkpoints.checkpoint.read_stored"),
        ("profile", "optin_cli.profiling.profile.measure_costs"),
        ("profile", "a write"),
        ("score", "optin_cli.data.text.samples.read_table"),
        ("score", "optin_cli.checkpoints.text_input.TextInput.tokenizer"),
        ("score", "optin_cli.scoring.one_shot.sensitivity_batch"),
        ("search", "optin_cli.artifacts.scores.read_bytes"),
        ("search", "optin_cli.searching.choose.choose_units"),
        ("search", "optin_cli.files._renameat2"),
        ("prune", "optin_cli.pruning.prune.cut"),
        ("prune", "optin_cli.checkpoints.save.modeling_source"),
        ("prune", "optin_cli.checkpoints.fresh.fresh_process"),
        ("prune", "optin_cli.pruning.prune.write_card"),
        ("prune", "optin_cli.files._renameat2"),
        ("eval", "optin_cli.evaluation.evaluate.count_totals"),
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
    with patch("safetensors.torch.load_file", return_value=wrong):
        refused(
            desk.folder,
            ["prune", "bert", "--mask", "bert.mask.json", "--no-refit"],
            1,
            ["outputs differ by", "tolerance"],
        )
    with patch("optin_cli.checkpoints.fresh.RELOAD", "raise SystemExit('this is why')"):
        words = ["does not load in a fresh process", "this is why"]
        refused(desk.folder, ["prune", "bert", "--mask", "bert.mask.json", "--no-refit"], 1, words)


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


TWO = ["search", "bert.scores.safetensors", "--keep-flops", "0.6,0.8"]
CARD = ["eval", "bert-pruned", "--latency-runs", "0", "--card"]


@pytest.mark.parametrize("more", [[], ["-o", "masks"], ["-o", "there"]])
def test_several_masks_are_written_together_or_not_at_all(desk, more):
    desk.take("bert.scores.safetensors")
    (desk.folder / "there").mkdir()
    full, write, left = OSError(errno.ENOSPC, "No space left on device"), Path.write_bytes, [1]

    def second_fails(path, content):
        if not left:
            raise full
        left.clear()
        return write(path, content)

    with patch("pathlib.Path.write_bytes", second_fails):
        refused(desk.folder, [*TWO, *more], 1, ["No space is left"])
    assert call(*TWO, *more).code == 0


@pytest.mark.parametrize("fault", ["card", "rename"])
def test_a_result_and_the_card_that_quotes_it_are_written_together(desk, fault):
    desk.take("bert-pruned")
    before, rename = tree(desk.folder), files._renameat2

    def refuse(source, target, flag):
        if target.name == "README.md":
            raise OSError(errno.EROFS, "Read-only file system")
        return rename(source, target, flag)

    make = tempfile.mkstemp

    def read_only(*args, dir, **options):
        if Path(dir).name == "bert-pruned":
            raise OSError(errno.EROFS, "Read-only file system")
        return make(*args, dir=dir, **options)

    place = ("optin_cli.files._renameat2", refuse) if fault == "rename" else ("tempfile.mkstemp", read_only)
    with patch(*place):
        result = call(*CARD)
    assert result.code == 1 and "Read-only file system" in result.err, result.err
    assert tree(desk.folder) == before
    assert call(*CARD).code == 0
