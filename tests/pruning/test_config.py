"""Uniform pruned folders: the library's own class loads them, or they are refused before any work."""

import json

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import DECODERS, FAMILIES, IMAGES, make_inputs, make_pixels, save_checkpoint, save_images
from helpers.running import call, done
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.save import save_cut
from optin_cli.errors import UsageError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.pruning.config import config_settings
from optin_cli.pruning.prune import cut_copy
from optin_cli.searching.limits import Limits

WEIGHTS_ALONE = ScoreOptions(criterion="magnitude")

FULL_WIDTH = {"opt", "opt-post-norm", "gpt2", "gpt-neox", "gpt-neox-serial"}
"""Decoders whose heads together are as wide as their hidden states."""

HEADS_TOO = {"vit", "deit", "deit-distilled", "beit", "dinov2", "dinov2-swiglu", "dinov2-registers"}

HEADS_TOO |= DECODERS.keys() - FULL_WIDTH
"""Families whose config states fewer heads of the same size."""

STATED = {
    "dinov2-swiglu": {"head"},
    "qwen3-moe": {"head", "neuron", "expert", "expert-neuron"},
    "mixtral": {"head", "expert", "expert-neuron"},
}
"""Groups of which the config states fewer units, where they are not neurons, with or without heads."""

NEVER = (
    "swin",
    "swinv2",
    "convnext",
    "mobilevit",
    "mobilenet_v2",
    "mobilenet_v2-expanded",
    "resnet",
    "resnet-bottleneck",
)

NEVER += tuple(name for name in IMAGES if name.startswith(("mask", "segformer", "upernet")))

NEVER += tuple(
    name for name in IMAGES if name.startswith("timm-") and not name.startswith(("timm-vit", "timm-d", "timm-b"))
)

SHARED_BIAS = ("beit-shared",)
"""All layers index one table of biases by head, which a cut leaves as it is."""

STOCK = [name for name in (*FAMILIES, *DECODERS, *IMAGES) if name not in (*NEVER, *SHARED_BIAS)]


def save_tiny(folder, family):
    if family in IMAGES:
        return save_images(folder, family)
    return save_checkpoint(folder, family, "next" if family in DECODERS else "classes")


def uniform_mask(checkpoint, share=0.85, **options):
    scores = optin_cli.score(checkpoint, options=WEIGHTS_ALONE)
    return optin_cli.search(scores, Limits(keep_macs=share, layout="uniform", **options))


def every_count(checkpoint):
    """A mask in which all groups keep fewer units (their last ones), where the stock config states fewer at all."""
    kept = {}
    for group in checkpoint.structure.groups:
        fewer = [k for k in range(1, group.units) if group.config and group.config.counts().allows(k)]
        kept[group.name] = list(range(group.units - max(fewer, default=group.units), group.units))
    return make_mask(checkpoint, kept, options={"layout": "uniform"})


LOAD = """
import sys
sys.modules["optin_cli"] = None
from pathlib import Path
import timm, torch, transformers
from safetensors.torch import load_file, save_file
for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if (p / "auto").exists()):
    auto = (folder / "auto").read_text()
    if auto == "timm.create_model":
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        model = getattr(transformers, auto).from_pretrained(folder)
    with torch.no_grad():
        result = model.eval()(**load_file(folder / "inputs"))
    save_file({"logits": result if isinstance(result, torch.Tensor) else result["logits"]}, folder / "outputs")
"""


def test_every_stock_class_loads_what_its_config_states(tmp_path, reload_server):
    """All families in one fresh process that knows the libraries alone."""
    expected, whole = {}, {}
    for family in STOCK:
        checkpoint = load_checkpoint(save_tiny(tmp_path / f"{family}-whole", family))
        mask = every_count(checkpoint)
        stated = config_settings(checkpoint, mask, "mask")
        model, plan = cut_copy(checkpoint, {name: group.kept for name, group in mask.groups.items()})
        folder = tmp_path / family
        folder.mkdir()
        save_cut(checkpoint, model, plan, folder, settings=stated)
        inputs = make_pixels(checkpoint.model) if family in IMAGES else make_inputs()
        save_file(inputs, folder / "inputs")
        (folder / "auto").write_text(checkpoint.blueprint.auto_class)
        with torch.no_grad():
            expected[family], whole[family] = (
                out if isinstance(out, torch.Tensor) else out["logits"]
                for out in (model(**inputs), checkpoint.model(**inputs))
            )
        cut = {name.rpartition(".")[2] for name, group in mask.groups.items() if len(group.kept) < group.units}
        assert cut == STATED.get(family, {"head", "neuron"} if family in HEADS_TOO else {"neuron"})
        assert stated and not (folder / "modeling_optin.py").exists()
        config = json.loads((folder / "config.json").read_text())
        assert "auto_map" not in config and "optin_plan" not in config
    run = reload_server.python(LOAD, tmp_path, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for family, outputs in expected.items():
        found = load_file(tmp_path / family / "outputs")["logits"]
        torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-4, msg=lambda m, f=family: f"{f}: {m}")
        assert not torch.allclose(found, whole[family], rtol=1e-3), family
        assert load_checkpoint(tmp_path / family).blueprint.plan is None


@pytest.mark.parametrize("family", ["swin", "resnet", "timm-mobilevit"])
def test_families_whose_config_states_nothing(tmp_path, family):
    checkpoint = load_checkpoint(save_tiny(tmp_path / "whole", family))
    with pytest.raises(UsageError, match="--layout uniform cannot be had") as caught:
        uniform_mask(checkpoint)
    assert "Leave out --layout uniform" in caught.value.hint


def test_a_bias_that_all_layers_share_is_refused_before_any_cut(tmp_path):
    checkpoint = load_checkpoint(save_tiny(tmp_path / "whole", "beit-shared"))
    with pytest.raises(optin_cli.errors.ArtifactError, match="relative_position_bias"):
        optin_cli.prune(checkpoint, uniform_mask(checkpoint, 0.6), tmp_path / "small")
    assert not (tmp_path / "small").exists()


GENERATE = """
import sys
sys.modules["optin_cli"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, pad_token_id=0).tolist())
"""


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_decoder_generates_from_its_folder(tmp_path, family, reload_server):
    folder = save_tiny(tmp_path / "whole", family)
    done("score", folder, "--criterion", "magnitude", "-o", tmp_path / "scores.safetensors")
    mask = tmp_path / "mask.json"
    done("search", tmp_path / "scores.safetensors", "--keep-flops", 0.75, "--layout", "uniform", "-o", mask)
    small = tmp_path / "small"
    done("prune", folder, "--mask", mask, "--no-refit", "-o", small)
    manifest = parse(Manifest, (small / "optin.json").read_text(), "optin.json")
    assert manifest.layout == "uniform" and manifest.certificate.reloaded <= manifest.certificate.tolerance
    config = json.loads((small / "config.json").read_text())
    heads = len(manifest.groups["decoder.0.head"].kept)
    assert config["num_key_value_heads"] == heads < 4 and config["num_attention_heads"] == 2 * heads
    run = reload_server.python(GENERATE, small, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    inputs = torch.tensor([[5, 6, 7]])
    kept = {name: group.kept for name, group in manifest.groups.items()}
    model, _ = cut_copy(load_checkpoint(folder), kept)
    expected = model.generate(inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert json.loads(run.stdout) == expected.tolist()


@pytest.fixture
def bert(here, made):
    """Scores of BERT, whose config states neurons but no heads."""
    return made.scores


def test_prune_writes_a_stock_folder_and_says_so(bert, here, made):
    done("search", bert, "--keep-flops", "0.9", "--layout", "uniform", "-o", "uniform.json")
    done("prune", made.bert, "--mask", "uniform.json", "--calib", made.texts, "-o", "small")
    card = (here / "small/README.md").read_text()
    assert "trust_remote_code" not in card and "AutoModelForSequenceClassification.from_pretrained(folder)" in card
    assert not (here / "small/modeling_optin.py").exists()
    manifest = parse(Manifest, (here / "small/optin.json").read_text(), "optin.json")
    assert manifest.refit and manifest.certificate.loader.startswith("plain AutoModelForSequenceClassification")
    result = done("eval", "small", "--latency-runs", "0", "--json", "-o", "-").out
    assert json.loads(result)["totals"]["parameters"] == manifest.after.parameters


def edited(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def drop_heads(raw):
    for name, group in raw["groups"].items():
        if name.endswith("head"):
            group["kept"] = [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_heads, "no key for fewer units of encoder.head, of which the mask keeps 2"),
        (lambda raw: raw["groups"]["encoder.1.neuron"].update(kept=[0, 5]), "encoder.1.neuron keeps 2 units and"),
        (lambda raw: [g.update(kept=[]) for n, g in raw["groups"].items() if "neuron" in n], "counts are 1 or more"),
    ],
)
def test_edited_masks_that_no_stock_config_states(bert, here, made, change, words):
    done("search", bert, "--keep-flops", "0.9", "--layout", "uniform", "-o", "uniform.json")
    edited(here / "uniform.json", change)
    run = call("prune", made.bert, "--mask", "uniform.json", "--calib", made.texts, "-o", "small")
    assert run.code == 1 and words in run.err and "Traceback" not in run.err
    assert "trust_remote_code=True" in run.err and not (here / "small").exists()


def test_a_stock_class_has_no_place_for_added_biases(bert, here, made):
    done("search", bert, "--keep-flops", "0.9", "--layout", "uniform", "-o", "uniform.json")
    args = ("--mask", "uniform.json", "--calib", made.texts, "--add-bias", "-o", "small")
    run = call("prune", made.bert, *args)
    assert run.code == 2 and "--add-bias" in run.err
