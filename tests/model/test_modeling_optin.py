"""Merging of tokens: its laws on random tensors, and models that merge."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.models import logits, make_pixels
from helpers.tokens import tokens_kept
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from optin_cli.exporting.trace import Outputs
from optin_cli.model.cut import cut
from optin_cli.model.modeling_optin import (
    PASS,
    apply_plan,
    merge_tokens,
    pair_tokens,
)
from optin_cli.model.plan import Plan


def merge(hidden, count, special, sizes=None):
    sizes = torch.ones(hidden.shape[:2]) if sizes is None else sizes
    place = pair_tokens(hidden, count, special)
    return (*merge_tokens(hidden, sizes, place, count), place)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_merging_keeps_sums_sizes_and_special_tokens(data):
    rows, special = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    others = data.draw(st.integers(2, 12))
    count = data.draw(st.integers(0, others // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    hidden = torch.randn(rows, special + others, 8, generator=generator)
    sizes = torch.randint(1, 5, hidden.shape[:2], generator=generator).float()
    merged, total, place = merge(hidden, count, special, sizes)
    assert merged.shape == (rows, special + others - count, 8) and total.shape == merged.shape[:2]
    torch.testing.assert_close(total.sum(1), sizes.sum(1))
    weighed = [(h * s[:, :, None]).sum(1) for h, s in ((hidden, sizes), (merged, total))]
    torch.testing.assert_close(*weighed, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged[:, :special], hidden[:, :special]) and torch.equal(total[:, :special], sizes[:, :special])
    assert torch.equal(place, pair_tokens(hidden, count, special)), "the same twice"
    assert all(set(row.tolist()) == set(range(special + others - count)) for row in place)
    if not count:
        torch.testing.assert_close(merged, hidden)


def test_the_most_alike_merge():
    """Of a, b, A', B' where A' is nearly a: those two become their mean, and all others keep their order."""
    a, b, c, d = torch.eye(8)[:4]
    hidden = torch.stack([torch.ones(8), a, a * 0.9 + b * 0.1, c, d])[None]
    merged, sizes, _ = merge(hidden, 1, 1)
    assert sizes.tolist() == [[1, 2, 1, 1]]
    torch.testing.assert_close(merged[0], torch.stack([hidden[0, 0], (hidden[0, 1] + hidden[0, 2]) / 2, c, d]))


def test_duplicates_merge_into_themselves():
    """Attention over merged duplicates, weighed by size, is attention over all of them."""
    half = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    hidden = half.repeat_interleave(2, dim=1)
    merged, sizes, _ = merge(hidden, 4, 0)
    torch.testing.assert_close(merged, half)
    assert sizes.tolist() == [[2.0] * 4]
    attend = torch.nn.functional.scaled_dot_product_attention
    mine = attend(merged, merged, merged, attn_mask=sizes.log()[:, None, :])
    torch.testing.assert_close(mine, attend(hidden, hidden, hidden)[:, ::2])


@pytest.fixture(scope="module", params=["vit", "timm-dinov2"])
def merging(request, image_checkpoint):
    """A model whose tokens merge, whose base model is a part of it (vit) or all of it; and its blocks."""
    checkpoint = image_checkpoint(request.param)
    model = copy.deepcopy(checkpoint.model)
    cut(model, checkpoint.structure, tokens_kept(checkpoint, 4, 2))
    return model, [model.get_submodule(block.path) for block in checkpoint.structure.blocks]


@pytest.fixture
def inputs(merging):
    return make_pixels(merging[0], 2)


def test_passes_of_other_models_and_threads_do_not_mix(merging, inputs):
    model, blocks = merging
    expected, twin, more = logits(model, inputs), copy.deepcopy(model), make_pixels(model, 3, seed=1)
    other = logits(twin, more)
    found = []

    def inside(_module, _inputs):
        handle.remove()
        found.extend([logits(twin, more), logits(model, more)])
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(logits, model, more).result())

    handle = blocks[2].register_forward_pre_hook(inside)
    assert torch.equal(logits(model, inputs), expected)
    assert len(found) == 3 and all(torch.equal(each, other) for each in found)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(each, expected) for each in pool.map(lambda _: logits(model, inputs), range(8)))
    with torch.inference_mode():
        assert torch.equal(logits(model, inputs), expected)
    pickled = io.BytesIO()
    torch.save(twin, pickled)
    pickled.seek(0)
    assert torch.equal(logits(torch.load(pickled, weights_only=False), more), other)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_passes_leave_nothing(merging, inputs, error):
    model, blocks = merging
    expected, twin, before = logits(model, inputs), copy.deepcopy(model), PASS.get()

    def fail(_module, _inputs):
        raise error

    handle = blocks[2].register_forward_pre_hook(fail)

    def inside(_module, _inputs):
        with pytest.raises(error):
            logits(model, make_pixels(model, 3, seed=1))

    with pytest.raises(error):
        logits(model, inputs)
    around = dict(twin.named_modules())[next(n for n, m in model.named_modules() if m is blocks[1])]
    around.register_forward_pre_hook(inside)
    assert torch.equal(logits(twin, inputs), expected)
    handle.remove()
    assert torch.equal(logits(model, inputs), expected)
    assert error is KeyboardInterrupt or PASS.get() is before, "torch calls no hook after that one"


@pytest.mark.parametrize("change", ["clone", "wrapper", "autocast"])
def test_what_stands_between_blocks_loses_no_sizes(merging, inputs, change):
    model, blocks = merging[0], merging[1]
    expected = logits(model, inputs)
    if change == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(logits(model, inputs).float(), expected, rtol=0.2, atol=0.2)
        return
    if change == "clone":
        handles = [block.register_forward_hook(lambda _m, _i, output: copied(output)) for block in blocks]
    else:
        handles = [block.register_forward_pre_hook(moved, with_kwargs=True, prepend=True) for block in blocks]
    assert torch.equal(logits(model, inputs), expected)
    for handle in handles:
        handle.remove()


def copied(output):
    return (output[0].clone(), *output[1:]) if isinstance(output, tuple) else output.clone()


def moved(_module, args, kwargs):
    """As accelerate's hooks do when they bring inputs to a block's device."""
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args), dict(kwargs)


@pytest.mark.parametrize("what", ["model", "blocks"])
def test_compiled_models_merge_the_same_tokens(merging, inputs, what):
    model, blocks = copy.deepcopy(merging[0]), merging[1]
    expected = logits(model, inputs)
    torch._dynamo.reset()
    if what == "model":
        model = torch.compile(model, backend="eager")
    else:
        names = {id(block) for block in blocks}
        for name in [name for name, module in merging[0].named_modules() if id(module) in names]:
            model.get_submodule(name).compile(backend="eager")
    for rows in (2, 2, 5):
        inputs = make_pixels(merging[0], rows, seed=rows)
        torch.testing.assert_close(logits(model, inputs), logits(merging[0], inputs))
    assert expected.shape == (2, 3)


def test_blocks_merge_without_their_model_and_not_alone(merging, inputs, image_checkpoint):
    """Blocks run without their base model, as by timm's forward_features; a block alone is refused."""
    model, blocks = merging
    hidden, before = torch.randn(2, 7, 32), PASS.get()
    if hasattr(model, "forward_features"):
        expected = logits(model, inputs)
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(model.forward_head(model.forward_features(**inputs)), expected)
        assert PASS.get() is before
    with pytest.raises(RuntimeError, match="run apart from its model"):
        blocks[2](hidden)


def test_something_that_drops_tokens_between_blocks_is_refused(merging, inputs):
    model, blocks = merging
    handle = blocks[1].register_forward_pre_hook(lambda _module, args: (args[0][:, 1:], *args[1:]), prepend=True)
    with pytest.raises(RuntimeError, match="changed the number of tokens"):
        logits(model, inputs)
    handle.remove()


def test_plans_of_earlier_folders_merge_the_same_tokens(image_checkpoint):
    """The plan of a folder that an earlier optin wrote: what merges is the same, by the same keys."""
    checkpoint = image_checkpoint("vit")
    model, inputs = copy.deepcopy(checkpoint.model), make_pixels(checkpoint.model, 2)
    plan = {
        "root": "vit",
        "parameters": {},
        "attributes": {},
        "select": [],
        "attend": [],
        "empty": [],
        "merge": {
            "blocks": ["vit.layers.0", "vit.layers.1", "vit.layers.2"],
            "counts": [4, 2, 0],
            "special": 1,
            "argument": "attention_mask",
        },
    }
    now = cut(model, checkpoint.structure, tokens_kept(checkpoint, 4, 2))
    assert now == Plan.model_validate(plan)
    older, base = copy.deepcopy(checkpoint.model), copy.deepcopy(checkpoint.model.vit)
    apply_plan(older, plan)
    assert torch.equal(logits(older, inputs), logits(model, inputs))
    apply_plan(base, {**plan, "merge": plan["merge"]})
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
        assert torch.equal(older.classifier(hidden[:, 0]), logits(model, inputs))
    apply_plan(copy.deepcopy(checkpoint.model), {k: v for k, v in plan.items() if k not in ("attend", "merge")})


def test_models_that_merge_are_traced_by_torch_export(merging, inputs):
    """As `exporting/trace.py` does, with a free batch size."""
    model, name = merging[0], next(iter(inputs))
    module = Outputs(model, [name], ["logits"])
    with torch.no_grad():
        program = torch.export.export(
            module, (), kwargs=inputs, dynamic_shapes={name: {0: torch.export.Dim("batch")}}
        ).module()
    for rows in (2, 3):
        more = make_pixels(model, rows, seed=1)
        torch.testing.assert_close(program(**more)["logits"], logits(model, more))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_without_columns_is_its_bias_and_no_linear_layer(bias):
    """Quantizers replace linear layers, and a quantized kernel of no columns puts out whatever lies in memory."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5, bias=bias))
    plan = {"root": "", "parameters": {"0.weight": [0, 3], "0.bias": [0], "1.weight": [5, 0]}}
    apply_plan(model, plan | {"attributes": {}, "select": [], "empty": []})
    assert type(model[0]) is torch.nn.Linear and not isinstance(model[1], torch.nn.Linear)
    assert {n: tuple(t.shape) for n, t in model[1].state_dict().items()} == {
        "weight": (5, 0),
        **({"bias": (5,)} if bias else {}),
    }
    expected = model[1].bias if bias else torch.zeros(5)
    found = model[1](torch.ones(2, 7, 0))
    assert torch.equal(found, expected.expand(2, 7, 5))


def test_so_is_one_that_holds_its_weights_the_other_way():
    model = torch.nn.Sequential(Conv1D(4, 3), Conv1D(5, 4))
    plan = {"root": "", "parameters": {"0.weight": [3, 0], "0.bias": [0], "1.weight": [0, 5]}}
    apply_plan(model, plan | {"attributes": {}, "select": [], "empty": []})
    assert isinstance(model[0], Conv1D) and not isinstance(model[1], Conv1D)
    assert torch.equal(model(torch.ones(2, 7, 3)), model[1].bias.expand(2, 7, 5))


class Reader(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config


def test_a_module_sees_values_of_its_own_in_the_config_that_all_share():
    shared = SimpleNamespace(heads=8, attention="eager")
    model = torch.nn.Sequential(Reader(shared), Reader(shared))
    plan = {"root": "", "parameters": {}, "select": [], "empty": []}
    for heads in (6, 2):
        apply_plan(model, plan | {"attributes": {"1.config.heads": heads}})
    for found in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [one.config.heads for one in found] == [8, 2]
        found[0].config.attention = "sdpa"
        assert found[1].config.attention == "sdpa" and not hasattr(found[1].config, "width")
