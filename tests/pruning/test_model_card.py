"""The model card: what it opens with, what the original's card gives it, and numbers only once they are measured."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.running import call, done
from huggingface_hub import metadata_load

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import GroupMask
from optin_cli.checkpoints.folders import folder_source
from optin_cli.checkpoints.libraries.registry import read_folder
from optin_cli.errors import ArtifactError
from optin_cli.pruning.model_card import (
    BEGIN,
    END,
    UNMEASURED,
    _code,
    _licence,
    _plain,
    read_front,
    write_card,
    write_measured,
)

COMPARE = ("--task", "sst2", "--latency-runs", "2", "--force")


@pytest.fixture
def pruned(made, here):
    shutil.copytree(made.pruned, here / "small")
    return here / "small"


def manifest_of(folder):
    return parse(Manifest, (folder / "optin.json").read_bytes(), "optin.json")


def section(card):
    return card.partition(BEGIN)[2].partition(END)[0].strip()


def body(card):
    """The card without its front matter."""
    return card.split("\n---\n", 1)[1]


def test_a_new_card(made):
    card = (made.pruned / "README.md").read_text()
    order = ["How to load", "What was done", "Metric and latency", "## How\n", "Certificate", "Limits", "Licence"]
    assert [card.index(word) for word in order] == sorted(card.index(word) for word in order)
    assert section(card) == UNMEASURED
    assert "criterion `trajectory`" in card and "Scored on `texts.jsonl`" in card and "No refit" in card
    front = metadata_load(made.pruned / "README.md")
    expected = {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["optin", "pruned"]}
    assert front == expected, "the name of a folder is no base model, and nobody said what the licence is"


def test_measured_numbers_go_into_the_card(made, pruned):
    done("eval", "small", *COMPARE, "--data", made.train, "--against", made.bert, "--card", "-o", "e.json")
    result = parse(Evaluation, Path("e.json").read_bytes(), "e.json")
    before, after = result.against.metric.value, result.metric.value
    card = (pruned / "README.md").read_text()
    row = f"| accuracy | train.jsonl, 24 samples | {before:.4f} | {after:.4f} ± {result.standard_error:.4f} |"
    assert row in section(card) and "Not measured yet" not in card
    assert f"| {result.latency.median_ms:.4g} | ratio {result.against.latency_ratio:.3f} |" in card
    rest = (made.pruned / "README.md").read_text().replace(UNMEASURED, "")
    assert body(card).replace(section(card), "") == body(rest), "nothing else changes"
    old, new = (metadata_load(folder / "README.md") for folder in (made.pruned, pruned))
    index = new.pop("model-index")
    assert new == old, "nor does the rest of the front matter"
    (measured,) = index[0]["results"]
    assert measured["metrics"] == [{"type": "accuracy", "value": pytest.approx(after, abs=1e-6)}]
    assert measured["dataset"] == {"name": "train.jsonl", "type": "train.jsonl", "split": "all"}
    assert measured["task"] == {"type": "text-classification"} and index[0]["name"] == "small"
    change = f"{after - before:+.4f} ± {result.against.drop_error:.4f}"
    assert change in section(card)
    assert folder_source(pruned).sha256 == folder_source(made.pruned).sha256
    done("eval", "small", "--latency-runs", "0", "--force", "--card")
    card = (pruned / "README.md").read_text()
    assert section(card) == UNMEASURED, "an evaluation that measured nothing claims nothing"
    assert "model-index" not in metadata_load(pruned / "README.md")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cpu", "Latency was measured on cpu, 2 threads."),
        ("cpu (AMD EPYC 7763 64-Core Processor)", "on cpu (AMD EPYC 7763 64-Core Processor), 2 threads."),
        ("cuda (NVIDIA H100 80GB HBM3)", "on cuda (NVIDIA H100 80GB HBM3)."),
    ],
)
def test_the_device_stands_beside_the_table_and_not_in_it(made, pruned, device, words):
    result = parse(Evaluation, made.evaluation.read_bytes(), "e")
    speed = result.latency.model_copy(update={"device": device, "threads": 2})
    write_measured(pruned, result.model_copy(update={"latency": speed}))
    lines = section((pruned / "README.md").read_text()).splitlines()
    assert any(words in line for line in lines)
    rows = [line for line in lines if line.startswith("|")]
    assert any("| latency, ms | batch 32, 64 tokens, median of 2 runs |" in row for row in rows), rows
    assert not any(device in row for row in rows)


def test_what_people_wrote_stays(made, pruned):
    text = (pruned / "README.md").read_text()
    (pruned / "README.md").write_text(text.replace("## Limits", "Mine: {curly} \\1.\n\n## Limits"))
    result = parse(Evaluation, made.evaluation.read_bytes(), "e")
    write_measured(pruned, result)
    assert "Mine: {curly} \\1." in (pruned / "README.md").read_text()
    source = result.inputs["checkpoint"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ArtifactError, match="made from checkpoint"):
        write_measured(pruned, result.model_copy(update={"inputs": {**result.inputs, "checkpoint": source}}))


@pytest.mark.parametrize("spoil", ["no mark", "no card", "no manifest"])
def test_refused_before_any_time_is_spent(pruned, spoil, monkeypatch):
    if spoil == "no manifest":
        (pruned / "optin.json").unlink()
    elif spoil == "no card":
        (pruned / "README.md").unlink()
    else:
        (pruned / "README.md").write_text("mine alone")
    monkeypatch.setattr("optin_cli.exporting.load.load_evaluated", None)
    result = call("eval", "small", "--card")
    assert result.code == (2 if spoil == "no manifest" else 1)
    assert "was not written by optin prune" in result.err if spoil == "no manifest" else BEGIN in result.err
    assert not Path("small.eval.json").exists()


def test_the_originals_card_and_licence_are_carried_along(made, here):
    shutil.copytree(made.bert, "bert")
    front = {
        "license": "other",
        "license_name": "mine: 1.0",
        "language": ["en"],
        "base_model": "org/bert",
        "widget": [1],
    }
    Path("bert/README.md").write_text(
        f"---\n{yaml.safe_dump(front | {'pipeline_tag': 'zero-shot-classification'})}---\n"
    )
    for name in ("LICENSE", "NOTICE.txt"):
        Path("bert", name).write_text(name)
    done("prune", "bert", "--mask", made.mask, "--no-refit", "-o", "small")
    found = metadata_load("small/README.md")
    del front["widget"]
    assert found == front | {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-classification",
        "tags": ["optin", "pruned"],
    }
    assert "That of the original: `mine: 1.0`. See [LICENSE](LICENSE)." in Path("small/README.md").read_text()
    assert Path("small/LICENSE").read_text() == "LICENSE" and Path("small/NOTICE.txt").is_file()


@pytest.mark.parametrize("text", ["no front matter", "---\n: [\n---\n", "---\n- a list\n---\n", "\x00", ""])
def test_cards_without_front_matter(here, text):
    Path("README.md").write_text(text)
    assert read_front(here) == {}
    assert read_front(None) == read_front(here / "none") == {}


def test_a_hub_id_is_a_base_model_and_long_masks_fold(made):
    manifest = manifest_of(made.pruned)
    source = manifest.inputs["checkpoint"].model_copy(update={"name": "org/bert"})
    groups = {f"encoder.{n}.{kind}": GroupMask(units=4, kept=[0]) for n in range(48) for kind in ("head", "neuron")}
    changed = manifest.model_copy(update={"inputs": {**manifest.inputs, "checkpoint": source}, "groups": groups})
    blueprint = read_folder(made.bert)
    card = write_card(changed, blueprint, [])
    assert "base_model: org/bert\n" in card
    assert "<summary>What 48 layers keep</summary>" in card and "| encoder.47 | 1 of 4 | 1 of 4 |" in card
    short = write_card(manifest, blueprint, [])
    assert "<details>" not in short and "| kept in | head | neuron |" in short


def test_pipelines_take_the_pruned_folder_and_what_is_saved_of_it(made, here, reload_server):
    code = (
        "import sys; sys.modules['optin_cli'] = None\nfrom transformers import pipeline\n"
        "found = [pipeline('text-classification', model=sys.argv[1], trust_remote_code=True)]\n"
        "found[0].save_pretrained('again')\n"
        "found.append(pipeline('text-classification', model='again', trust_remote_code=True))\n"
        "print(*(sorted(p('a b c')[0].items()) for p in found), sep='\\n')\n"
    )
    result = reload_server.python(code, made.pruned, cwd=here, HF_MODULES_CACHE=str(here / "m"))
    first, again = result.stdout.splitlines()
    assert first == again and "'label'" in first, result.stderr
    assert "not supported" not in result.stderr, "transformers knows what the model is for"


def test_the_card_says_how_to_load(made):
    card = (made.pruned / "README.md").read_text()
    assert card.index("How to load") < card.index("What was done")
    assert "trust_remote_code=True" in card and "Asked: 0.6 of the macs" in card


def test_the_card_says_of_other_versions_what_was_compared(made):
    blueprint, manifest = read_folder(made.bert), manifest_of(made.pruned)
    certified = f"Certified with transformers {manifest.versions['transformers']}."
    words = " ".join(write_card(manifest, blueprint, []).split())
    assert f"{certified} With 4.44.2 and 4.57.1, tiny models of this family" in words
    own = " ".join(write_card(manifest, replace(blueprint, kind="of-my-own"), []).split())
    assert f"{certified} Do **not**" in own, "nothing was compared for a description of one's own"


def test_names_hold_no_markup():
    assert _plain("<img src=x onerror=f()> [a](b)") == "&lt;img src=x onerror=f()&gt; &#91;a&#93;(b)"
    assert _code("a`<b>`") == "a'<b>'"
    assert _licence({}, ["LICENSE](javascript:f())"]).endswith(
        "[LICENSE&#93;(javascript:f())](LICENSE%5D%28javascript%3Af%28%29%29)."
    )
    assert _plain("bert_base-uncased") == "bert_base-uncased"
