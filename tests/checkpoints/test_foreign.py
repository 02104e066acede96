"""Whatever a library raises over a file is one error that names the file."""

import json

import pytest
from helpers.desk import SCORE, refused
from helpers.running import QUICK

from optin_cli.checkpoints.foreign import explaining
from optin_cli.errors import CheckpointError, DataError


@pytest.mark.parametrize(
    "error", [Exception("bad"), KeyError("bad"), IndexError("bad"), AssertionError("bad"), OSError("bad")]
)
def test_any_error_becomes_one_of_ours(error):
    with pytest.raises(CheckpointError, match=r"x is unsound: .*bad") as caught, explaining("x is unsound", "Mend it."):
        raise error
    assert caught.value.hint == "Mend it." and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [DataError("ours"), MemoryError(), KeyboardInterrupt()])
def test_ours_and_the_systems_pass(error):
    with pytest.raises(type(error)), explaining("x is unsound"):
        raise error


def other_model(raw):
    raw["model"]["type"] = "Nope"


def beyond(raw):
    raw["model"]["vocab"]["a"] = 500


def no_model(raw):
    raw["model"] = 3


@pytest.mark.parametrize("change", [other_model, beyond, no_model])
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
