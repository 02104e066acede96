"""--architecture: artifacts record an own description, and those of two descriptions do not mix."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.running import QUICK, call, done, tree

from optin_cli.architectures.registry import FOLDER
from optin_cli.artifacts.base import Source
from optin_cli.artifacts.reading import artifacts_in
from optin_cli.checkpoints.folders import folder_source
from optin_cli.files import sha256_of

SIZES = ("--latency-runs", "0")

OWN = ("--architecture", "mine.json")


@pytest.fixture
def own(work):
    """The working directory with a description of BERT beside the checkpoint, as a user has one of an own family."""
    shutil.copyfile(FOLDER / "bert.json", work / "mine.json")
    return work


def pruned_with(*description):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *description, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.6", "-o", "m.json")
    done("prune", "bert", "--mask", "m.json", "--no-refit", *description, "-o", "small")


def test_every_artifact_records_an_own_description(own):
    pruned_with(*OWN)
    done("profile", "bert", *OWN, "-o", "p.json")
    done("profile", "bert", "--latency", "--runs", "1", "--batch", "1", *OWN, "-o", "l.json")
    done("search", "s.safetensors", "--keep-latency", "1", "--latency-table", "l.json", "-o", "timed.json")
    data = ("--task", "sst2", "--data", "train.jsonl", *SIZES)
    done("eval", "small", *data, "--against", "bert", *OWN, "-o", "e.json")
    done("export", "small", "--to", "torch-export", *OWN, "-o", "traced")
    done("eval", "traced/model.pt2", *SIZES, *OWN, "-o", "t.json")
    sweep = ("--calib", "texts.jsonl", "--samples", "8", "--recipe", "magnitude", "--max-drop", "1")
    done("sweep", "bert", *data, *sweep, "--evaluations", "1", *OWN, "-o", "swept")
    folders = [Path(name) for name in (".", "small", "traced", "swept", "swept/model")]
    found = {str(folder / read.name): read.head.inputs for folder in folders for read in artifacts_in(folder)}
    assert set(found) == {
        *("s.safetensors", "m.json", "p.json", "l.json", "timed.json", "e.json", "t.json"),
        *("small/optin.json", "traced/model.pt2.optin.json"),
        *("swept/sweep.json", "swept/mask.json", "swept/model/optin.json", "swept/magnitude.scores.safetensors"),
    }
    mine = Source(name="mine.json", sha256=sha256_of(Path("mine.json")))
    assert {name: inputs.get("architecture") for name, inputs in found.items()} == dict.fromkeys(found, mine)
    assert "Units as described by `mine.json`" in Path("small/README.md").read_text()
    facts = json.loads(done("report", "small", "--mask", "m.json", "--profile", "p.json", "--json").out)
    assert ["architecture of the manifest", "mine.json"] in [[o["role"], o["name"]] for o in facts["origins"]]
    lines = {line.split()[1]: line.endswith(" --architecture mine.json") for line in facts["commands"]}
    assert lines == {"profile": True, "score": True, "search": False, "prune": True, "eval": True}


def test_a_shipped_description_is_recorded_nowhere(made):
    found = [*artifacts_in(made.root), *artifacts_in(made.pruned)]
    assert len(found) == 5
    assert not [read.name for read in found if "architecture" in read.head.inputs]


def test_a_mask_of_another_description_is_refused(own):
    pruned_with(*OWN)
    (own / "other.json").write_text((own / "mine.json").read_text() + "\n")
    shutil.copytree(own / "small", own / "before")
    cases = [
        ((), "with the shipped architecture description"),
        (("--architecture", "other.json"), "other.json (sha256"),
    ]
    for refit in (("--no-refit",), ("--calib", "texts.jsonl", "--samples", "8")):
        for description, words in cases:
            result = call("prune", "bert", "--mask", "m.json", *refit, *description, "-o", "small", "--force")
            assert result.code == 1 and words in result.err
            assert "m.json was made with the architecture description mine.json (sha256" in result.err
    done("search", scored(), "--keep-flops", "0.6", "-o", "shipped.json")
    result = call("prune", "bert", "--mask", "shipped.json", *OWN, "-o", "small", "--force")
    assert result.code == 1 and "shipped.json was made with the shipped architecture description" in result.err
    assert tree(own / "small") == tree(own / "before")
    Path("mine.json").rename("renamed.json")
    done("prune", "bert", "--mask", "m.json", "--no-refit", "--architecture", "renamed.json", "-o", "again")
    assert folder_source(Path("again")).sha256 == folder_source(Path("small")).sha256


def scored(*description):
    done("score", "bert", "--calib", "texts.jsonl", *QUICK, *description, "-o", "plain.safetensors", "--force")
    return "plain.safetensors"


def test_artifacts_of_two_descriptions_do_not_mix(own):
    """A latency table is of the scores' description, and a report's scores and profile of the mask's."""
    done("profile", "bert", "--latency", "--runs", "1", "--batch", "1", *OWN, "-o", "l.json")
    budget = ("--keep-latency", "0.9", "--latency-table", "l.json")
    result = call("search", scored(), *budget, "-o", "m.json")
    assert result.code == 1 and "l.json was made with the architecture description mine.json" in result.err
    assert "plain.safetensors was made with the shipped" in result.err
    pruned_with(*OWN)
    done("profile", "bert", "-o", "p.json")
    result = call("report", "small", "--profile", "p.json", "-o", "r.html")
    assert result.code == 1 and "p.json was made with the shipped architecture description" in result.err
    done("profile", "bert", *OWN, "-o", "own.json")
    done("report", "small", "--mask", "m.json", "--profile", "own.json", "-o", "r.html")
