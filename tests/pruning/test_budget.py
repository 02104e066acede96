"""What a pruned folder says of its budget is what its kept units reach, whoever wrote the mask."""

import json
from pathlib import Path

import pytest
from helpers.models import save_checkpoint, save_images
from helpers.running import QUICK, call, done
from PIL import Image

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask


def edit(path, **kept):
    """Write a mask beside another, with other kept units of some groups (names with _ for .)."""
    raw = json.loads(path.read_text())
    for name, units in kept.items():
        raw["groups"][name.replace("_", ".")]["kept"] = list(units)
    edited = path.with_name("edited.json")
    edited.write_text(json.dumps(raw))
    return edited


def pruned(checkpoint, mask, *options):
    done("prune", checkpoint, "--mask", mask, "--no-refit", "-o", "small", *options)
    manifest = parse(Manifest, Path("small/optin.json").read_bytes(), "optin.json")
    return manifest, Path("small/README.md").read_text(encoding="utf-8")


def test_a_mask_as_searched_keeps_its_very_numbers(made, here):
    manifest, card = pruned(made.bert, made.mask)
    mask = parse(Mask, made.mask.read_text(), "mask")
    assert manifest.budget == mask.budget
    assert f"Reached: {mask.budget.reached['macs']:.4f} of the macs" in card


def test_an_edited_mask_says_what_it_reaches(made, here):
    mask = here / "m.json"
    mask.write_text(made.mask.read_text())
    manifest, card = pruned(made.bert, edit(mask, encoder_0_neuron=[0], encoder_1_head=[]))
    measured = {name: getattr(manifest.after, name) / getattr(manifest.before, name) for name in ("macs", "parameters")}
    assert manifest.budget.reached == pytest.approx(measured, rel=1e-6)
    assert manifest.budget.asked == {"macs": 0.6}
    assert f"Reached: {measured['macs']:.4f} of the macs" in card


def test_a_share_of_latency_stays_only_with_the_units_that_were_searched(made, here):
    done("profile", made.bert, "--latency", "--runs", 1, "--batch", 1, "-o", "l.json")
    done("search", made.scores, "--keep-latency", 1, "--keep-flops", 0.7, "--latency-table", "l.json", "-o", "m.json")
    manifest, _ = pruned(made.bert, "m.json")
    assert set(manifest.budget.reached) == {"macs", "parameters", "latency"}
    done("report", "--mask", "m.json", "--scores", made.scores, "-o", "r.html")
    searched = parse(Mask, (here / "m.json").read_text(), "mask").budget.reached
    assert f"Asked: 1 of the latency; reached: {searched['latency']:.4f}." in (here / "r.html").read_text()
    edited = edit(here / "m.json", encoder_0_neuron=[0])
    manifest, card = pruned(made.bert, edited, "--force")
    assert set(manifest.budget.reached) == {"macs", "parameters"}
    assert "The latency is not known: the mask was edited after the search." in card
    for evidence in (["small", "--mask", edited], ["--mask", edited, "--scores", made.scores]):
        done("report", *evidence, "-o", "r.html", "--force")
        page = (here / "r.html").read_text()
        assert "Asked: 1 of the latency; reached: not known" in page
        assert f"reached: {manifest.budget.reached['macs']:.4f}." in page


@pytest.mark.parametrize("costs", ["scores", "profile"])
def test_an_edited_mask_without_a_pruned_model_is_reported_as_it_is(made, here, costs):
    mask = here / "m.json"
    mask.write_text(made.mask.read_text())
    edited = edit(mask, encoder_0_neuron=[0], encoder_1_head=[])
    reached = pruned(made.bert, edited)[0].budget.reached["macs"]
    done("report", "--mask", edited, f"--{costs}", getattr(made, costs), "-o", "r.html")
    assert f"Asked: 0.6 of the MACs; reached: {reached:.4f}." in (here / "r.html").read_text()


def test_merged_tokens_count(here):
    folder = save_images(here / "vit", "vit")
    pets = here / "pets"
    pets.mkdir()
    for number in range(8):
        Image.effect_noise((32, 32), 20 * number + 10).convert("RGB").save(pets / f"{number}.png")
    units = ("--units", "heads,neurons,tokens")
    done("score", folder, "--calib", pets, *QUICK, *units, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", 0.7, "-o", "m.json")
    manifest, _ = pruned(folder, "m.json")
    assert manifest.budget == parse(Mask, (here / "m.json").read_text(), "mask").budget
    manifest, _ = pruned(folder, edit(here / "m.json", encoder_0_token=[0, 1, 2]), "--force")
    measured = manifest.after.macs / manifest.before.macs
    assert manifest.budget.reached["macs"] == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("family", "group", "kept", "words"),
    [
        ("llama", "decoder_1_head", [], "keeps 0 of the 4 units of decoder.1.head; decoder.1 needs at least 1"),
        ("gpt2", "decoder_1_head", [], "keeps 0 of the 4 units of decoder.1.head; decoder.1 needs at least 1"),
        ("qwen3-moe", "decoder_2_expert", [3], "keeps 1 of the 6 units of decoder.2.expert; decoder.2 needs at least"),
    ],
)
def test_a_block_keeps_as_many_units_as_it_needs(here, family, group, kept, words):
    folder = save_checkpoint(here / "decoder", family, "next")
    texts = here / "texts.txt"
    texts.write_text("a b c\nd e f\ng h\ni j k\n")
    done("score", folder, "--calib", texts, *QUICK, "--seq-len", 4, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", 0.9, "-o", "m.json")
    edited = edit(here / "m.json", **{group: kept})
    result = call("prune", folder, "--mask", edited, "--no-refit", "-o", "small")
    assert result.code == 1 and words in result.err
    assert not (here / "small").exists()
