"""A pruned folder whose config was changed behind our back is refused in words, before anything is computed."""

import copy
import json

import pytest
from helpers.masks import make_mask
from helpers.models import save_checkpoint

import optin_cli
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import CheckpointError

HEADS = "bert.encoder.layer.0.attention.self.num_attention_heads"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A BERT with narrower queries and keys, a head and neurons fewer."""
    root = tmp_path_factory.mktemp("plans")
    checkpoint = load(save_checkpoint(root / "bert", "bert"))
    kept = {"encoder.0.head-dim": [0, 1, 2], "encoder.1.head": [0], "encoder.1.neuron": [0, 1, 5]}
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), root / "pruned")
    return root / "pruned"


def changed(folder, change):
    """The folder with another plan in its config; returns the folder."""
    config = json.loads((folder / "config.json").read_text())
    plan = copy.deepcopy(config["optin_plan"])
    config["optin_plan"] = change(plan) or plan
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_pad(**values):
    return lambda plan: plan["pad"][0].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_pad(widths=[-0.5]), r"not valid:\n  pad.0.widths.0: Input should be a valid integer"),
        (with_pad(widths=[[{}]]), r"pad.0.widths.0: Input should be a valid integer"),
        (with_pad(widths=["3"]), r"pad.0.widths.0: Input should be a valid integer"),
        (with_pad(to=-(10**30)), r"pad.0.to: Input should be greater than or equal to 1"),
        (with_pad(to=10**8), r"pad.0.to: Input should be less than or equal to 8192"),
        (with_pad(more=1), r"pad.0.more: Extra inputs are not permitted"),
        (lambda plan: plan["parameters"].update({"x": [10**12]}), r"parameters.x.0: Input should be less than"),
        (lambda plan: plan["attributes"].update({HEADS: None}), r"attributes.*: Input should be a valid integer"),
        (lambda plan: [*plan], r"should be an object"),
        (with_pad(to=2), r"pad.0: .*heads of 3 dimensions cannot be padded to 2"),
        (with_pad(widths=[]), r"pad.0.widths: List should have at least 1 item"),
        (with_pad(widths=[5]), r"pruned loads, but does not run: "),
        (with_pad(to=7), r"pruned loads, but does not run: "),
        (with_pad(module="nothing"), r"pruned does not load as BertForSequenceClassification"),
    ],
)
def test_what_is_no_plan_of_ours_is_refused(pruned, change, words):
    before = (pruned / "config.json").read_bytes()
    try:
        with pytest.raises(CheckpointError, match=words):
            load(changed(pruned, change))
    finally:
        (pruned / "config.json").write_bytes(before)
    assert load(pruned).blueprint.plan["pad"]
