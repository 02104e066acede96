"""Plans in the terms of earlier versions of a library, and what a folder says where no terms fit."""

import copy
import importlib.metadata
import sys
import types

import pytest
import torch
import transformers
from helpers.masks import make_mask
from helpers.models import logits, random_kept, save_checkpoint
from torch import nn

import optin_cli
from optin_cli.architectures.registry import find_architecture
from optin_cli.architectures.schema import EarlierRule, EmptyRule, NeedRule
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.cut import cut
from optin_cli.model.earlier import earlier_layout, with_earlier
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.plan import Merge, Padded, Plan, SelectedArgument, Size

RULE = EarlierRule(
    names={
        "layers.*": "encoder.layer.*",
        "layers.*.mixer.q": "encoder.layer.*.mixer.inner.query",
        "layers.*.mixer.units": "encoder.layer.*.mixer.inner.heads",
        "layers.*.mlp.gate": "encoder.layer.*.mlp.both",
        "layers.*.mlp.up": "encoder.layer.*.mlp.both",
    },
    sizes={
        "encoder.layer.*.width": {"rows": "encoder.layer.*.mixer.inner.query.weight"},
        "encoder.layer.*.third": {"rows": "encoder.layer.*.mixer.inner.query.weight", "parts": 3},
        "encoder.layer.*.count": {"rows": "encoder.layer.*.mixer.inner.query.weight", "over": "encoder.layer.*.each"},
    },
    empty={"layers.*.mixer": EmptyRule(module="encoder.layer.*.mixer.inner", returns=2)},
    arguments={"layers.*": {"mask": "bias"}},
)
PLAN = Plan(
    root="base",
    parameters={
        "base.layers.3.mixer.q.weight": [4, 8],
        "base.layers.3.mlp.gate.weight": [5, 8],
        "base.layers.3.mlp.up.weight": [5, 8],
        "base.layers.3.mlp.down.weight": [8, 5],
        "head.weight": [2, 8],
    },
    attributes={"base.layers.3.mixer.units": 2},
    select=[SelectedArgument(module="base.layers.3", argument="mask", axis=1, index=[0], of=2)],
    pad=[Padded(module="base.layers.3.mixer.q", widths=[1], to=2)],
    empty=[
        EmptyRule(module="base.layers.1.mixer", consumer="o"),
        EmptyRule(module="base.layers.2.mlp", consumer="down"),
    ],
    merge=Merge(blocks=["base.layers.0", "base.layers.1"], counts=[1, 0], special=0, argument="mask"),
)
SCALED = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def test_every_part_of_a_plan_has_its_earlier_terms():
    found = earlier_layout(PLAN, RULE.under("base", "base"))
    layer = "base.encoder.layer.3"
    assert found.parameters == {
        f"{layer}.mixer.inner.query.weight": [4, 8],
        f"{layer}.mlp.both.weight": [10, 8],
        f"{layer}.mlp.down.weight": [8, 5],
        "head.weight": [2, 8],
    }
    assert found.attributes == {f"{layer}.mixer.inner.heads": 2}
    assert [(one.module, one.argument) for one in found.select] == [(layer, "bias")]
    assert [one.module for one in found.pad] == [f"{layer}.mixer.inner.query"]
    assert found.empty == [
        EmptyRule(module="base.encoder.layer.1.mixer.inner", returns=2),
        EmptyRule(module="base.encoder.layer.2.mlp", consumer="down"),
    ]
    assert found.merge.blocks == ["base.encoder.layer.0", "base.encoder.layer.1"]
    rows = f"{layer}.mixer.inner.query.weight"
    assert found.sizes == [
        Size(attribute=f"{layer}.width", rows=rows),
        Size(attribute=f"{layer}.third", rows=rows, parts=3),
        Size(attribute=f"{layer}.count", rows=rows, over=f"{layer}.each"),
    ]


def test_a_backbone_that_lay_elsewhere():
    moved = earlier_layout(PLAN.model_copy(update={"root": ""}), RULE.under("base", "before"))
    assert "before.encoder.layer.3.mlp.both.weight" in moved.parameters
    assert "before.encoder.layer.3.mlp.down.weight" in moved.parameters
    assert "head.weight" in moved.parameters


class Attention(nn.Module):
    """As a later version builds it: heads that follow from the layer's width."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.width = nn.Linear(6, 6), 2


class Before(Attention):
    """As an earlier version builds it: the number of heads is an attribute."""

    def __init__(self):
        super().__init__()
        self.count = 3


LATER = Plan(root="", parameters={"inner.q_proj.weight": [4, 6]})
COUNTED = EarlierRule(sizes={"inner.count": {"rows": "inner.q_proj.weight", "over": "inner.width"}}, since="77.1")


@pytest.mark.parametrize("kind", [Attention, Before])
def test_a_plan_takes_the_terms_that_the_model_has(kind):
    model = nn.ModuleDict({"inner": kind()})
    plan = with_earlier(LATER, model, COUNTED, ("torch", "99.1")).model_dump(mode="json")
    apply_plan(model, plan)
    assert model.inner.q_proj.weight.shape == (4, 6)
    assert getattr(model.inner, "count", None) == (2 if kind is Before else None)


@pytest.mark.parametrize(
    ("written", "since", "wanted"),
    [("99.1", "77.1", ">=77.1"), ("99.1", None, ">=99.1"), ("0.9", "0.8", "==0.9")],
)
def test_a_model_of_no_known_terms_names_the_version(written, since, wanted):
    model = nn.ModuleDict({"other": Attention()})
    plan = with_earlier(LATER, model, COUNTED.model_copy(update={"since": since}), ("torch", written))
    found = importlib.metadata.version("torch")
    with pytest.raises(ImportError, match=r"lacks inner\.q_proj\.weight") as caught:
        apply_plan(model, plan.model_dump(mode="json"))
    assert f"needs torch {wanted}: ModuleDict of the installed torch {found}" in str(caught.value)
    assert model.other.q_proj.weight.shape == (6, 6)


def test_what_a_model_cannot_do_without():
    model = nn.ModuleDict({"inner": Attention(), "extra": nn.Linear(2, 2)})
    rule = EarlierRule(
        needs=[NeedRule(path="extra.weight", since="88.2"), NeedRule(path="absent.weight", since="99.1")]
    )
    plan = with_earlier(LATER, model, rule, ("torch", "99.1"))
    assert [need.path for need in plan.needs] == ["extra.weight"]
    with pytest.raises(ImportError, match=r"needs torch >=88\.2.* lacks extra\.weight\."):
        apply_plan(nn.ModuleDict({"inner": Attention()}), plan.model_dump(mode="json"))


def test_versions_needed_for_terms_and_for_more_are_both_met():
    model = nn.ModuleDict({"inner": Attention(), "extra": nn.Linear(2, 2)})
    rule = EarlierRule(needs=[NeedRule(path="extra.weight", since="88.2")], since="77.1")
    plan = with_earlier(LATER, model, rule, ("torch", "99.1")).model_dump(mode="json")
    with pytest.raises(ImportError, match=r"needs torch >=88\.2.* lacks inner\.q_proj\.weight\."):
        apply_plan(nn.ModuleDict({"other": Attention()}), plan)
    with pytest.raises(ImportError, match=r"needs torch >=77\.1.* lacks inner\.q_proj\.weight\."):
        apply_plan(nn.ModuleDict({"other": Attention(), "extra": nn.Linear(2, 2)}), plan)


@pytest.mark.parametrize(
    ("unless", "there", "fits"), [(None, 2, True), (None, 3, False), (2, 3, True), (False, 3, False)]
)
def test_values_that_every_version_must_have(unless, there, fits):
    rule = EarlierRule(needs=[NeedRule(path="inner.width", since="88.2", unless=unless)])
    plan = with_earlier(LATER, nn.ModuleDict({"inner": Attention()}), rule, ("torch", "99.1")).model_dump(mode="json")
    model = nn.ModuleDict({"inner": Attention()})
    model["inner"].width = there
    if fits:
        assert apply_plan(model, plan)["inner"].q_proj.weight.shape == (4, 6)
        return
    with pytest.raises(ImportError, match=r"needs torch >=88\.2.* lacks inner\.width = 2\."):
        apply_plan(model, plan)
    assert model["inner"].q_proj.weight.shape == (6, 6)


@pytest.mark.parametrize(
    ("family", "values", "needs"),
    [
        ("llama", {}, {"head_dim": 4}),
        ("qwen2", {}, {"head_dim": 4}),
        ("qwen2", SCALED, {"rope_type": "linear", "head_dim": 4}),
        ("qwen2", WINDOW, {"has_sliding_layers": True, "head_dim": 4}),
    ],
)
def test_decoders_state_what_earlier_versions_ignore(tmp_path, family, values, needs):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family, "next", **values), device="cpu")
    plan = with_earlier(Plan(root="model"), checkpoint.model, checkpoint.structure.earlier, ("transformers", "99.1"))
    assert {need.path.rpartition(".")[2]: need.value for need in plan.needs} == needs
    apply_plan(checkpoint.model, plan.model_dump(mode="json"))


def test_arguments_that_a_forward_lacks(image_checkpoint):
    checkpoint = image_checkpoint("vit")
    merge = Merge(blocks=["vit.layers.0"], counts=[1], special=1, argument="sizes")
    plan = with_earlier(Plan(root="vit", merge=merge), checkpoint.model, None, ("transformers", "99.1"))
    with pytest.raises(ImportError, match=r"transformers >=99\.1.*lacks the argument sizes of vit\.layers\.0"):
        apply_plan(copy.deepcopy(checkpoint.model), plan.model_dump(mode="json"))


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_models_that_earlier_versions_do_not_know_are_refused_before_their_config(tmp_path, family, monkeypatch):
    """The config of such a model is reached through the module beside the weights, and stays the stock one."""
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family), device="cpu")
    optin_cli.prune(checkpoint, make_mask(checkpoint, random_kept(checkpoint.structure, 1)), tmp_path / "small")
    source = (tmp_path / "small" / "modeling_optin.py").read_text()
    config = transformers.AutoConfig.from_pretrained(tmp_path / "small", trust_remote_code=True)
    assert type(config) is type(checkpoint.model.config)
    if family == "bert":
        assert "AutoConfig" not in config.auto_map
        return
    earlier = types.ModuleType("transformers")
    earlier.__version__ = "4.44.2"
    monkeypatch.setitem(sys.modules, "transformers", earlier)
    with pytest.raises(
        ImportError, match=r"needs transformers >=4\.48: the installed transformers 4\.44\.2 has no Modern"
    ):
        exec(compile(source, "modeling_optin", "exec"), {"__name__": "modeling_optin"})


FAMILIES = {
    "vit": ("vit.encoder.layer.0.attention.attention.query.weight", "vit.encoder.layer.0.intermediate.dense.weight"),
    "beit-shared": (
        "beit.encoder.layer.0.attention.attention.query.weight",
        "beit.encoder.layer.0.output.dense.weight",
    ),
    "dinov2-swiglu": (
        "dinov2.encoder.layer.0.attention.output.dense.weight",
        "dinov2.encoder.layer.0.mlp.weights_in.weight",
    ),
    "swin": ("swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table",),
    "segformer": ("segformer.encoder.block.0.0.attention.self.query.weight",),
    "upernet-swin": ("backbone.encoder.layers.0.blocks.0.attention.self.query.weight",),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_hold_weights_and_plans_by_the_names_of_published_checkpoints(tmp_path, image_checkpoint, family):
    """Weights that the earlier terms name are stored in the shapes that these terms give them."""
    from safetensors.torch import load_file

    checkpoint = image_checkpoint(family)
    kept = random_kept(checkpoint.structure, 1)
    manifest = optin_cli.prune(checkpoint, make_mask(checkpoint, kept), tmp_path / "small")
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    small = load_checkpoint(tmp_path / "small")
    weights = load_file(tmp_path / "small" / "model.safetensors")
    (earlier,) = small.blueprint.plan["earlier"]
    assert set(FAMILIES[family]) <= set(earlier["parameters"]) <= set(weights)
    assert {path: list(weights[path].shape) for path in earlier["parameters"]} == earlier["parameters"]
    assert small.blueprint.plan["since"] == find_architecture(checkpoint.blueprint.kind).earlier.since
    model = copy.deepcopy(checkpoint.model)
    cut(model, checkpoint.structure, kept)
    torch.testing.assert_close(logits(small.model), logits(model), rtol=1e-4, atol=1e-4)
