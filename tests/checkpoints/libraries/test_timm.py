"""timm checkpoints: lone state dicts, broken folders, names on the hub, and timm itself missing."""

import argparse
import functools
import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.masks import make_mask
from helpers.models import IMAGES, SIDE, TIMM_VIT, build, logits, random_kept, save_images
from helpers.running import call, done, python
from helpers.states import write_state
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.costs import Profile
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.libraries.registry import parse_arguments
from optin_cli.checkpoints.libraries.timm import modeling
from optin_cli.errors import ArchitectureError, CheckpointError, UsageError
from optin_cli.model import modeling_optin
from optin_cli.model.masking import masked


@pytest.fixture
def folder(tmp_path):
    return save_images(tmp_path / "tiny", "timm-vit")


def edit_config(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def test_the_card_says_how_to_load(tmp_path, folder):
    checkpoint = load_checkpoint(folder)
    kept = random_kept(checkpoint.structure, 1)
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "small"))
    result = python(f'import sys\nsys.modules["optin_cli"] = None\n{code}\nprint(type(model).__name__)', cwd=tmp_path)
    assert result.stdout == "VisionTransformer\n", result.stderr
    assert "24 x 24 pixels" in card and "library_name: timm" in card


def test_a_timm_that_builds_nothing_from_folders_is_told_which_does(folder, monkeypatch):
    space = {"__name__": "modeling_optin", "__file__": str(folder / "modeling_optin.py")}
    exec(Path(modeling_optin.__file__).read_text() + modeling(load_checkpoint(folder).blueprint), space)
    monkeypatch.setattr(timm, "__version__", "1.0.9")
    with pytest.raises(
        ImportError, match=r"needs timm >=1\.0\.16: the installed timm 1\.0\.9 builds no models from local"
    ):
        space["load_model"]()


def lone(folder, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes())
    return path


ARGUMENTS = "img_size=24,patch_size=8,embed_dim=32,depth=3,num_heads=4,mlp_ratio=1.25,num_classes=3"


def test_a_lone_state_dict_is_the_checkpoint_that_its_name_says(tmp_path, folder):
    path = lone(folder, tmp_path)
    arguments = parse_arguments(ARGUMENTS)
    checkpoint = load_checkpoint(path, arch="timm:vit_tiny_patch16_224", arch_args=arguments)
    assert (checkpoint.name, checkpoint.blueprint.image.shape, checkpoint.blueprint.num_labels) == (
        "weights",
        (3, SIDE, SIDE),
        3,
    )
    torch.testing.assert_close(logits(checkpoint.model), logits(build("timm-vit")))
    assert checkpoint.input.preprocess()(Image.new("RGB", (9, 9))).shape == (3, SIDE, SIDE)
    kept = random_kept(checkpoint.structure, 1)
    optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    with masked(checkpoint.model, checkpoint.structure, kept):
        mine = logits(optin_cli.load(tmp_path / "small").model)
        torch.testing.assert_close(mine, logits(checkpoint.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "arguments", "error", "message"),
    [
        ("timm:vit_tiny_patch16_224", "img_size=24", CheckpointError, "holds|lacks|does not load"),
        ("timm:vit_tiny_patch16_224", ARGUMENTS.replace("24", "32"), CheckpointError, "does not load as VisionTr"),
        ("timm:vit_tiny_patch16_224", ARGUMENTS.replace("depth=3", "depth=2"), CheckpointError, "holds 12 weight"),
        ("timm:vit_tiny_patch16_224", ARGUMENTS.replace("depth=3", "depth=4"), CheckpointError, "lacks 12 weight"),
        ("timm:vit_tiny_patch16_224", "wide=1", UsageError, "timm does not build .* with wide=1"),
        ("timm:vit_tinny_patch16_224", None, CheckpointError, "no model 'vit_tinny_patch16_224'"),
        ("timm:xcit_nano_12_p8_224", None, ArchitectureError, "'Xcit'"),
        ("hf:elsewhere", "img_size=24", UsageError, "--arch-args are for models of timm"),
        (None, "img_size=24", UsageError, "need the model's name"),
    ],
)
def test_wrong_architectures_of_a_lone_state_dict_are_refused(tmp_path, folder, arch, arguments, error, message):
    with pytest.raises(error, match=message):
        load_checkpoint(lone(folder, tmp_path), arch=arch, arch_args=parse_arguments(arguments))


def test_the_command_line_takes_a_lone_state_dict(tmp_path, folder):
    path = lone(folder, tmp_path)
    run = done("profile", path, "--arch", "timm:vit_tiny_patch16_224", "--arch-args", ARGUMENTS, "--json")
    assert parse(Profile, run.out, "stdout").workload.image == (3, SIDE, SIDE)
    assert "24 x 24 pixels" in done("profile", folder).out
    assert "no sequence length" in call("profile", folder, "--seq-len", "9").err
    assert "not KEY=VALUE" in call("profile", path, "--arch", "timm:vit_tiny_patch16_224", "--arch-args", "x").err


def test_blocks_that_compute_otherwise_are_refused(tmp_path):
    """Normalisation behind attention, or inside it, would make a mask and a cut differ."""
    name = "vit_base_patch16_rpn_224"
    model = timm.create_model(name, **TIMM_VIT)
    save_for_hf(model, tmp_path / name, model_config={"model_args": TIMM_VIT}, safe_serialization=True)
    with pytest.raises(ArchitectureError, match="and is one of Block"):
        load_checkpoint(tmp_path / name)
    arguments = TIMM_VIT | {"scale_attn_norm": True}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    save_for_hf(model, tmp_path / "scaled", model_config={"model_args": arguments}, safe_serialization=True)
    assert {g.kind for g in load_checkpoint(tmp_path / "scaled").structure.groups} == {"neuron"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: edit_config(f, architecture="vit_huge_of_old"), CheckpointError, "timm has no model"),
        (lambda f: edit_config(f, architecture=...), CheckpointError, "no architecture of timm"),
        (lambda f: edit_config(f, model_args={"wide": 1}), CheckpointError, "config.json is refused by timm"),
        (
            lambda f: edit_config(f, model_args=IMAGES["timm-vit"][2] | {"num_classes": 4}),
            CheckpointError,
            "does not load as VisionTransformer",
        ),
        (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "holds no weights"),
        (
            lambda f: save_file({"head.bias": torch.ones(3)}, f / "model.safetensors"),
            CheckpointError,
            r"lacks \d+ weight",
        ),
    ],
)
def test_broken_folders_are_refused(folder, change, error, message):
    change(folder)
    with pytest.raises(error, match=message):
        load_checkpoint(folder)


def test_names_of_timm_are_taken_from_the_local_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    name = "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    snapshot = cache / name / "snapshots" / ("0" * 40)
    save_images(snapshot, "timm-vit")
    reference = cache / name / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for source in (
        "timm:vit_tiny_patch16_224",
        "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    ):
        assert load_checkpoint(source).blueprint.image.shape == (3, SIDE, SIDE)
    with pytest.raises(CheckpointError, match="no model hub could supply it"):
        load_checkpoint("timm:vit_tiny_patch16_384")
    with pytest.raises(CheckpointError, match="no model 'vit_tiny'"):
        load_checkpoint("timm:vit_tiny")


def test_without_timm_its_checkpoints_are_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match="not installed") as caught:
        load_checkpoint(folder)
    assert "optin-cli[vision]" in caught.value.hint


def test_images_of_another_size(tmp_path, folder):
    convnet = save_images(tmp_path / "convnext", "timm-convnext")
    opened = load_checkpoint(convnet, image_size=(64, 96))
    assert opened.input.workload().image == (3, 64, 96) and opened.input.workload().resized
    assert opened.input.preprocess()(Image.new("RGB", (50, 40))).shape == (3, 64, 96)
    with pytest.raises(UsageError, match=r"tiny does not take images of 32 x 32 pixels: .*") as caught:
        load_checkpoint(folder, image_size=(32, 32))
    assert "--image-size" in caught.value.hint


def test_timm_has_no_label_maps(folder):
    checkpoint = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="has none of semantic segmentation"):
        checkpoint.blueprint.builder.map_decoder(checkpoint.blueprint)


def old_names(state):
    """A ConvNeXt as its authors published it."""
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks", ""),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    return {functools.reduce(lambda name, rule: re.sub(*rule, name), rules, key): t for key, t in state.items()}


def test_weights_that_timm_converts_are_converted(tmp_path):
    folder = save_images(tmp_path / "tiny", "timm-convnext")
    state = load_file(folder / "model.safetensors")
    mixed = {name: tensor.half() if "pwconv" in name else tensor for name, tensor in old_names(state).items()}
    path = write_state(tmp_path / "old.pth.tar", {"epoch": 1, "model": mixed, "args": argparse.Namespace(lr=0.1)})
    found = load_checkpoint(path, arch="timm:test_convnext2", arch_args={"num_classes": 3})
    assert found.name == "old"
    assert found.notes == (f"{path} has weights under names of old; timm converted them.",)
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, state[name].half().float() if "mlp.fc" in name else state[name])
        assert found.stored_as(name) == (torch.float16 if "mlp.fc" in name else torch.float32)


def test_what_lies_beside_timms_weights_is_left_out(tmp_path, folder):
    beside = {"n_averaged": torch.tensor(5), "loss.weight": torch.ones(2)}
    state = {f"module.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()} | beside
    save_file(state, folder / "model.safetensors")
    checkpoint = load_checkpoint(folder)
    assert sorted(checkpoint.left_out) == ["loss.weight", "n_averaged"]
    said = "2 tensors (loss.weight, n_averaged) left out, which VisionTransformer has no place for."
    assert said in done("profile", folder).err
    kept = random_kept(checkpoint.structure, 1)
    assert sorted(optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small").left_out) == [
        "loss.weight",
        "n_averaged",
    ]


def test_old_batch_norms_have_counted_nothing(tmp_path):
    folder = save_images(tmp_path / "tiny", "timm-resnet")
    whole = load_checkpoint(folder)
    state = {n: t for n, t in load_file(folder / "model.safetensors").items() if "num_batches" not in n}
    save_file(state, folder / "model.safetensors")
    assert torch.equal(logits(load_checkpoint(folder).model), logits(whole.model))


def test_models_without_classes_put_out_features(tmp_path, folder):
    bare = save_images(tmp_path / "bare", "timm-vit", num_classes=0)
    edit_config(folder, model_args=IMAGES["timm-vit"][2] | {"num_classes": 0}, num_classes=0)
    for path, left_out in ((bare, ()), (folder, ("head.bias", "head.weight"))):
        checkpoint = load_checkpoint(path)
        (output,) = checkpoint.structure.outputs
        assert (output.kind, checkpoint.blueprint.purpose, checkpoint.left_out) == ("real", "similarity", left_out)
        kept = random_kept(checkpoint.structure, 1)
        optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / f"{path.name}-small")


def test_models_of_one_channel_take_grayscale_images(tmp_path):
    arguments = TIMM_VIT | {"in_chans": 1}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    config = {"model_args": arguments, "pretrained_cfg": {"input_size": [1, SIDE, SIDE], "mean": [0.5], "std": [0.5]}}
    save_for_hf(model, tmp_path / "gray", model_config=config, safe_serialization=True)
    pixels = load_checkpoint(tmp_path / "gray").input.preprocess()(Image.new("RGB", (9, 9), (51, 51, 51)))
    torch.testing.assert_close(pixels, torch.full((1, SIDE, SIDE), -0.6))


SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("skresnet18", {}, r"its layer1\.0\.conv1 is a SelectiveKernel, which weighs its branches by attention"),
        ("resnest14d", {}, r"its layer1\.0\.conv2 is a SplitAttn, which weighs its splits by attention"),
        (
            "test_convnext2",
            {"use_grn": True},
            r"mlp\.grn is a GlobalResponseNorm, which divides each channel's response",
        ),
    ],
)
def test_blocks_that_bind_their_channels_together_are_refused_by_name(tmp_path, name, arguments, message):
    arguments = {"num_classes": 3, **(SMALL_RESNET if "resn" in name else {}), **arguments}
    model = timm.create_model(name, **arguments)
    save_for_hf(model, tmp_path / name, model_config={"model_args": arguments}, safe_serialization=True)
    with pytest.raises(ArchitectureError, match=message):
        load_checkpoint(tmp_path / name)


def test_channels_that_a_fixed_filter_reads_stay(tmp_path):
    model = timm.create_model("resnetblur18", **SMALL_RESNET)
    save_for_hf(model, tmp_path / "blur", model_config={"model_args": SMALL_RESNET}, safe_serialization=True)
    checkpoint = load_checkpoint(tmp_path / "blur")
    assert [group.name for group in checkpoint.structure.groups] == ["layer1.0.channel"]
    optin_cli.prune(checkpoint, make_mask(checkpoint, random_kept(checkpoint.structure, 1)), tmp_path / "small")


@pytest.mark.parametrize("mean", [["0.5", "0.5", "0.5"], "half", [0.5, 0.5]], ids=str)
def test_preprocessing_that_cannot_be_is_refused(folder, mean):
    raw = json.loads((folder / "config.json").read_text())
    edit_config(folder, pretrained_cfg=raw["pretrained_cfg"] | {"mean": mean})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder).input.preprocess()
