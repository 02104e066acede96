"""Merging of tokens: its laws, every family that can through the real pipeline, its costs, and what is refused."""

import copy
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import IMAGES, make_pixels, random_kept, save_images
from helpers.pictures import image_folder
from helpers.running import Watch, call, done
from hypothesis import given, settings
from hypothesis import strategies as st

import optin_cli
from optin_cli.artifacts.base import Totals, Workload
from optin_cli.artifacts.costs import BlockCost, GroupCost, TokenCosts, merges_at
from optin_cli.artifacts.mask import Budget, GroupMask, Mask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.token_checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError, ArtifactError, BudgetError
from optin_cli.exporting.trace import Outputs
from optin_cli.model.costs import count_macs, measure_costs
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.model.modeling_optin import (
    PASS,
    apply_plan,
    merge_between,
    merge_tokens,
    merging_steps,
    pair_tokens,
)
from optin_cli.model.token_costs import measure_token_costs
from optin_cli.model.tokens import Merged, tokens_of
from optin_cli.options.scoring import ScoreOptions
from optin_cli.refit.refit import refit_model
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.tokens import ladder, per_unit, score_tokens
from optin_cli.searching.choose import choose_units
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits
from optin_cli.searching.token_costs import token_saving
from optin_cli.searching.token_schedule import Schedules, choose_with_tokens

MERGING = [
    family
    for family in IMAGES
    if "vit" in family or "deit" in family or "dinov2" in family
    if "mobilevit" not in family
]
OTHERS = ["swin", "timm-swin", "beit", "timm-beit", "convnext", "mobilevit", "timm-resnet"]
QUICK = ScoreOptions(
    samples=8, probes=1, batch_size=4, exact_samples=4, rescore=(), units=("heads", "neurons", "tokens")
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images; to be read only."""
    folder = tmp_path_factory.mktemp("images") / "pets"
    image_folder(folder, 8)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by family, each written once."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def load(family):
        if family not in made:
            made[family] = load_checkpoint(save_images(root / family, family))
        return made[family]

    return load


def tokens_kept(checkpoint, *counts):
    """A mask by which so many tokens merge behind the first blocks."""
    tokens = tokens_of(checkpoint.structure)
    kept, left = {}, tokens.mergeable
    for (name, _), count in zip(tokens.blocks, counts, strict=False):
        share = (left - count) * tokens.mergeable // left
        kept[f"{name}.token"] = list(range(tokens.mergeable - share, tokens.mergeable))
        left -= count
    assert tokens.counts(kept)[: len(counts)] == list(counts)
    return kept


def logits(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


def merge(hidden, count, special, sizes=None):
    sizes = torch.ones(hidden.shape[:2]) if sizes is None else sizes
    place = pair_tokens(hidden, count, special)
    return (*merge_tokens(hidden, sizes, place, count), place)


# Laws of merging


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_laws(data):
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


def test_steps():
    assert merging_steps(0, 9) == [] and merging_steps(3, 9) == [3] and merging_steps(8, 9) == [4, 2, 1, 1]
    assert ladder(64) == [4, 8, 16, 32, 47, 63] and ladder(3) == [1, 2]
    assert merges_at([64, 48, 48, 1, 64], 64) == [0, 16, 12, 35, 0], "three quarters of 64, of 48, and one"


def test_importance_rises_and_keeps_its_sum():
    slopes, steps = np.array([1.0, 0.5, -1.0, 3.0, 2.0, 9.0]), ladder(64)
    values = per_unit(slopes, 64)
    assert values.shape == (64,) and (np.diff(values) >= 0).all()
    assert values[:63].sum() == pytest.approx((slopes.clip(0) * np.diff([0, *steps])).sum(), rel=1e-5)
    assert values[0] == pytest.approx((1.0 * 4 + 0.5 * 4 + 0 * 8) / 16) and values[-1] == values[-2]
    assert per_unit(np.arange(1.0, 7.0) ** 2, 64)[:4].sum() == pytest.approx(4.0), "what was measured"
    assert not per_unit(np.zeros(6), 64).any()


# Search


def invented(seed, units=5, blocks=3):
    """Importances, unit costs and token costs of a model that does not exist."""
    draw = np.random.default_rng(seed)
    names = [f"encoder.{number}" for number in range(blocks)]
    macs = {name: float(draw.integers(400, 800)) for name in names}
    squares = {name: float(draw.integers(0, 200)) for name in names}
    groups = {
        f"{name}.neuron": GroupCost(kind="neuron", block=name, units=6, unit_macs=macs[name] / 10, unit_parameters=1)
        for name in names
    }
    groups |= {
        f"{name}.token": GroupCost(kind="token", block=name, units=units, unit_macs=0.0, unit_parameters=0)
        for name in names[:-1]
    }
    importance = {name: np.sort(draw.random(g.units)).astype(np.float32) for name, g in groups.items()}
    tokens = TokenCosts(
        length=units + 2,
        special=2,
        width=1,
        blocks={name: BlockCost(macs=macs[name], square=squares[name]) for name in names},
        unit_square={f"{name}.neuron": squares[name] / 12 for name in names},
    )
    totals = Totals(macs=int(sum(macs.values())) + 50, parameters=100, bytes=400)
    return importance, Costs(groups, totals, tokens)


def lost_by(kept, importance):
    return sum(float(v.sum()) - float(v[kept[name]].sum()) for name, v in importance.items())


@pytest.mark.parametrize("seed", range(4))
def test_schedules_at_a_price(seed):
    importance, costs = invented(seed)
    groups, totals = costs.groups, costs.totals
    schedules = Schedules(importance, costs.token_groups, costs.tokens, set())
    for price in (1e-5, 1e-3, 1e-2, 1.0):

        def objective(counts, price=price):
            kept = schedules.kept(counts)
            whole = {name: [*range(group.units)] for name, group in groups.items()}
            share = costs.remaining({**whole, **kept})["macs"]
            return lost_by(kept, {n: importance[n] for n in kept}) + price * share * totals.macs

        every = [(a, b) for a in range(5) for b in range(5)]
        assert objective(schedules.at_price(price)) == pytest.approx(min(map(objective, every)))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_joint_search(share):
    """It keeps the budget, loses no more than units alone would, and what is protected stays."""
    importance, costs = invented(1)
    groups = costs.groups

    def solve(costs, limits):
        return choose_units(importance, costs, limits)

    widths = [name for name, group in groups.items() if group.kind == "neuron"]
    alone = solve(costs.only(widths), Limits(keep_macs=share))
    kept = choose_with_tokens(solve, importance, costs, Limits(keep_macs=share))
    assert list(kept) == list(groups)
    assert costs.remaining(kept)["macs"] <= share
    assert lost_by(kept, importance) <= lost_by(alone, {n: importance[n] for n in alone}) + 1e-6
    limits = Limits(keep_macs=max(share, 0.6), protect=("*.token", "encoder.0.neuron"))
    kept = choose_with_tokens(solve, importance, costs, limits)
    assert all(kept[name] == [*range(group.units)] for name, group in groups.items() if group.kind == "token")
    assert kept["encoder.0.neuron"] == [*range(6)]


def test_budgets_that_tokens_cannot_meet():
    importance, costs = invented(1)

    def solve(costs, limits):
        return choose_units(importance, costs, limits)

    with pytest.raises(
        BudgetError, match=r"0\.05 of the macs cannot be met: the smallest reachable share is 0\.\d{4}\."
    ):
        choose_with_tokens(solve, importance, costs, Limits(keep_macs=0.05))


# Models


@pytest.mark.parametrize("family", MERGING)
def test_every_family(saved, pictures, tmp_path, family):
    """Scored, searched, cut and certified: what is promised is measured, and the folder computes the same."""
    checkpoint = saved(family)
    tokens = require_tokens(checkpoint)
    scores = optin_cli.score(checkpoint, str(pictures), options=QUICK)
    named = {name for name, group in scores.header.groups.items() if group.kind == "token"}
    assert named == {"encoder.0.token", "encoder.1.token"} == set(tokens.units)
    assert all((scores.importance[name] >= 0).all() for name in named)
    for share in (0.75, 0.5):
        mask = optin_cli.search(scores, Limits(keep_macs=share))
        assert mask.budget.reached["macs"] <= share
    # A random model may lose least by width alone: merging is that of a budget which nothing else can meet.
    with pytest.raises(BudgetError) as caught:
        optin_cli.search(scores, keep_flops=1e-4, protect=("*.head", "*.neuron"))
    share = (1 + caught.value.reachable[1]) / 2
    merging = optin_cli.search(scores, keep_flops=share, protect=("*.head", "*.neuron"))
    assert merging.budget.reached["macs"] <= share
    groups = {name: merging.groups[name] if name in named else group for name, group in mask.groups.items()}
    assert sum(group.units - len(group.kept) for name, group in groups.items() if name in named) > 0
    assert sum(group.units - len(group.kept) for name, group in groups.items() if name not in named) > 0
    now = Costs.of(scores.header).remaining({n: g.kept for n, g in groups.items()})
    mask = mask.model_copy(update={"groups": groups, "budget": Budget(asked={}, reached=now)})
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    kept = {name: group.kept for name, group in mask.groups.items()}
    assert manifest.after.macs / manifest.before.macs == pytest.approx(now["macs"], rel=1e-9)
    inputs = make_pixels(checkpoint.model, 3)
    with masked(checkpoint.model, checkpoint.structure, kept):
        expected = logits(checkpoint.model, inputs)
    small = load_checkpoint(tmp_path / "small")
    torch.testing.assert_close(logits(small.model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert optin_cli.profile(small).totals == manifest.after
    assert not torch.allclose(logits(checkpoint.model, inputs), expected, rtol=1e-3)
    with pytest.raises(ArchitectureError, match="merge already"):
        require_tokens(small)


@pytest.mark.parametrize(("family", "special"), [("timm-dinov2", 5), ("deit", 2), ("timm-deit", 2), ("vit", 1)])
def test_special_tokens(saved, family, special):
    assert tokens_of(saved(family).structure).special == special


@pytest.mark.parametrize("family", ["timm-dinov2", "vit"])
def test_promised_costs_are_measured(saved, family):
    checkpoint = saved(family)
    structure, tokens, inputs = checkpoint.structure, tokens_of(checkpoint.structure), make_pixels(checkpoint.model, 1)
    totals, groups = measure_costs(checkpoint.model, structure, inputs, 0)
    costs = measure_token_costs(checkpoint.model, structure, tokens, inputs)
    sequences = {
        name: GroupCost(kind="token", block=block, units=tokens.mergeable, unit_macs=0.0, unit_parameters=0)
        for name, block in tokens.block_of.items()
    }

    def measure(kept):
        model = copy.deepcopy(checkpoint.model)
        cut(model, structure, kept)
        return count_macs(model, inputs)[0]

    whole = {group.name: list(range(group.units)) for group in structure.groups}
    for counts in [(0, 0), (3, 1), (8, 0), (0, 8), (5, 3)]:
        for others in (random_kept(structure, 3), {"encoder.1.head": []}):
            kept = {**whole, **others, **tokens_kept(checkpoint, *counts)}
            promised = Costs({**groups, **sequences}, totals, costs).remaining(kept)["macs"] * totals.macs
            assert measure(kept) == pytest.approx(promised, rel=1e-9)
    for number, block in enumerate(tokens.block_of.values()):
        one = tokens_kept(checkpoint, *([0] * number), 1)
        assert totals.macs - measure(one) == pytest.approx(token_saving(costs, block), rel=1e-9)


def test_refit_of_a_merged_model(saved):
    """Each consumer is fitted to the original's stream at the tokens that are left; the answers get nearer."""
    checkpoint = saved("timm-dinov2")
    kept = {**random_kept(checkpoint.structure, 1), **tokens_kept(checkpoint, 3, 1)}
    keys = [tuple(f"{batch}.{row}" for row in range(16)) for batch in range(4)]
    batches = [Batch(make_pixels(checkpoint.model, 16, seed=n), None, k) for n, k in enumerate(keys)]
    model = copy.deepcopy(checkpoint.model)
    cut(model, checkpoint.structure, kept)
    inputs = make_pixels(checkpoint.model, 16, seed=9)
    target, before = logits(checkpoint.model, inputs), logits(model, inputs)
    report = refit_model(PrunedModel(checkpoint.model, model, checkpoint.structure, kept), batches)
    assert set(report) == {group.name for group in checkpoint.structure.groups}
    assert all(part.after < part.before for part in report.values())
    assert (logits(model, inputs) - target).square().mean() < 0.5 * (before - target).square().mean()


def test_what_merges_nothing_loses_nothing(saved):
    """Of a model whose patches are all alike the trajectory stays as it is, whatever merges."""
    checkpoint = saved("timm-vit")
    model = copy.deepcopy(checkpoint.model)
    model.pos_embed.zero_()
    inputs = {name: tensor * 0 for name, tensor in make_pixels(model, 2).items()}
    batch = Batch(inputs, None, ("a", "b"))
    whole = observe(model, checkpoint.structure, batch)
    with masked(model, checkpoint.structure, tokens_kept(checkpoint, 4, 3)):
        merged = observe(model, checkpoint.structure, batch)
    assert [f.shape for f in merged.features] == [f.shape for f in whole.features]
    for mine, theirs in zip([*merged.features, *merged.outputs], [*whole.features, *whole.outputs], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["vit", "timm-dinov2"])
def merging(request, saved):
    """A model whose tokens merge, whose base model is a part of it (vit) or all of it; and its blocks."""
    checkpoint = saved(request.param)
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
def test_compiled(merging, inputs, what):
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


def test_parts_of_a_model(merging, inputs, saved):
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


def test_plans_of_earlier_folders(saved):
    """The plan of a folder that an earlier optin wrote: what merges is the same, by the same keys."""
    checkpoint = saved("vit")
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
    assert now.model_dump() == plan
    older, base = copy.deepcopy(checkpoint.model), copy.deepcopy(checkpoint.model.vit)
    apply_plan(older, plan)
    assert torch.equal(logits(older, inputs), logits(model, inputs))
    apply_plan(base, {**plan, "merge": plan["merge"]})
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
        assert torch.equal(older.classifier(hidden[:, 0]), logits(model, inputs))
    apply_plan(copy.deepcopy(checkpoint.model), {k: v for k, v in plan.items() if k not in ("attend", "merge")})


def test_exported(merging, inputs):
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


def test_averages(saved):
    """What a merged sequence is compared with: the mean of the tokens that merged."""
    checkpoint = saved("timm-vit")
    hidden, other = torch.randn(2, 10, 4), torch.randn(2, 7, 4)
    source = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 4, 5, 6]] * 2)
    sizes = torch.tensor([[1.0, 2, 1, 1, 3, 1, 1]] * 2)
    merged = Merged(sizes, source)
    found = merged.average(hidden)
    torch.testing.assert_close(found[:, 1], hidden[:, 1:3].mean(1))
    torch.testing.assert_close(found[:, 4], hidden[:, 5:8].mean(1))
    torch.testing.assert_close(found[:, 0], hidden[:, 0])
    assert torch.equal(merged.spread(other)[:, 7], other[:, 4])
    with pytest.raises(ValueError, match="cannot merge into others"):
        handles = merge_between(checkpoint.model, list(checkpoint.model.blocks)[:1], [9], 1, "attn_mask")
        checkpoint.model.blocks[0](hidden.repeat(1, 1, 8))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("changed", ["batches", "workload", "inputs", "options", "version"])
def test_a_state_is_taken_up_by_the_same_run_alone(saved, pictures, tmp_path, monkeypatch, changed):
    checkpoint = saved("timm-vit")
    scores = optin_cli.score(checkpoint, str(pictures), options=replace(QUICK, units=("heads", "neurons")))
    one, other = (Batch(make_pixels(checkpoint.model, 2, seed=seed), None, ("a", "b")) for seed in (0, 1))
    state = tmp_path / "state.tokens"

    def score(head=scores.header, batch=one, resume=False, **rest):
        saved = SavedState(state, resume)
        return score_tokens(replace(scores, header=head), checkpoint, [batch], QUICK, state=saved, **rest)

    def stop(done, _total, _what):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(progress=Watch(stop))
    head = scores.header
    changes = {
        "batches": {"batch": other},
        "workload": {"head": head.model_copy(update={"workload": Workload(batch_size=2, image=(3, 24, 24))})},
        "inputs": {"head": head.model_copy(update={"inputs": {**head.inputs, "architecture": checkpoint.source}})},
        "options": {"head": head.model_copy(update={"options": {**head.options, "seed": 1}})},
    }
    with monkeypatch.context() as patch:
        if changed == "version":
            patch.setattr("optin_cli.scoring.accumulate.__version__", "0")
        with pytest.raises(ArtifactError, match="was left by a run with other options"):
            score(**changes.get(changed, {}), resume=True)
    assert score(resume=True).content() == score().content()


# What is refused


@pytest.mark.parametrize("family", OTHERS)
def test_models_whose_tokens_cannot_merge(saved, pictures, family):
    with pytest.raises(ArchitectureError, match=r"tokens of .* cannot be reduced: its family") as caught:
        optin_cli.score(saved(family), str(pictures), options=QUICK)
    assert "ViT, DeiT and DINOv2" in caught.value.hint


def test_dense_outputs(saved):
    checkpoint = saved("vit")
    tokens = replace(tokens_of(checkpoint.structure), dense=("last_hidden_state",))
    with pytest.raises(ArchitectureError, match="last_hidden_state says something of every token"):
        require_tokens(replace(checkpoint, structure=replace(checkpoint.structure, kinds=(tokens,))))


def whole_mask(checkpoint, **changed):
    tokens = tokens_of(checkpoint.structure)
    units = {g.name: g.units for g in checkpoint.structure.groups} | tokens.units
    groups = {name: GroupMask(units=n, kept=changed.pop(name, [*range(n)])) for name, n in units.items()}
    return Mask(
        optin_version="0",
        options={},
        inputs={"checkpoint": checkpoint.source},
        workload={"image": [3, 24, 24]},
        budget=Budget(asked={}, reached={}),
        importance_lost=None,
        groups={**groups, **changed},
    )


def test_edited_masks(saved, tmp_path):
    checkpoint = saved("timm-vit")
    none = whole_mask(checkpoint, **{"encoder.0.token": [0, 1, 2], "encoder.1.token": []})
    with pytest.raises(ArtifactError, match=r"no token would go on behind encoder\.1; at least one must") as caught:
        optin_cli.prune(checkpoint, none, tmp_path / "small")
    assert "Keep 1 to 9 units" in caught.value.hint
    for groups, found in (
        ({"encoder.0.token": GroupMask(units=8, kept=[0])}, "has 8 units; in timm-vit it has 9"),
        ({"encoder.2.token": GroupMask(units=9, kept=[0])}, "masks the group 'encoder.2.token'"),
    ):
        mask = whole_mask(checkpoint)
        with pytest.raises(ArtifactError, match=found):
            optin_cli.prune(
                checkpoint, mask.model_copy(update={"groups": {**mask.groups, **groups}}), tmp_path / "small"
            )
    assert not (tmp_path / "small").exists()
    uniform = whole_mask(checkpoint, **{"encoder.0.token": [0, 1, 2]}).model_copy(
        update={"options": {"layout": "uniform"}}
    )
    with pytest.raises(ArtifactError, match="its config has no key for tokens that merge"):
        optin_cli.prune(checkpoint, uniform, tmp_path / "small")
    all_but_one = whole_mask(checkpoint, **{"encoder.0.token": [4]})
    assert tokens_of(checkpoint.structure).counts({"encoder.0.token": [4]}) == [8, 0, 0]
    assert optin_cli.prune(checkpoint, all_but_one, tmp_path / "small").certificate.reloaded == 0


# The command line


def test_command_line(saved, pictures, here, reload_server):
    """The whole pipeline with tokens, and a cut folder cut again: heads and neurons go, tokens are refused."""
    saved("timm-vit")
    checkpoint = save_images(here / "vit", "timm-vit")
    options = ("--calib", pictures, "--samples", "12", "--exact-samples", "4", "--batch-size", "6", "--probes", "1")
    result = done("score", checkpoint, *options, "--rescore", "none", "--units", "heads,neurons,tokens", "-o", "s")
    assert result.out.strip() == "s" and sorted(p.name for p in here.iterdir()) == ["s", "vit"]
    done("score", checkpoint, *options, "--rescore", "none", "--units", "heads,neurons,tokens", "-o", "again")
    assert (here / "s").read_bytes() == (here / "again").read_bytes()
    found = done("search", "s", "--keep-flops", "0.5", "--protect", "encoder.1.token", "-o", "m")
    assert "token" in found.err
    mask = json.loads((here / "m").read_text())
    assert mask["groups"]["encoder.1.token"] == {"units": 9, "kept": [*range(9)]}
    mask["groups"]["encoder.0.token"]["kept"] = [5, 6, 7, 8]  # a random model may lose least without
    (here / "m").write_text(json.dumps(mask))
    uniform = done("search", "s", "--keep-flops", "0.8", "--layout", "uniform", "--json")
    assert all(len(g["kept"]) == 9 for name, g in json.loads(uniform.out)["groups"].items() if "token" in name)
    whole = done("search", "s", "--keep-params", "0.9", "--json")
    assert all(len(g["kept"]) == 9 for name, g in json.loads(whole.out)["groups"].items() if "token" in name)
    done("prune", checkpoint, "--mask", "m", "--calib", pictures, "--samples", "24", "-o", "small")
    code = "import sys; sys.modules['optin_cli'] = None; sys.path.insert(0, 'small'); import modeling_optin as m, torch"
    ran = reload_server.python(f"{code}; print(tuple(m.load_model()(torch.zeros(2, 3, 24, 24)).shape))", cwd=here)
    assert ran.stdout.strip() == "(2, 3)", ran.stderr
    assert "certified by onnxruntime" in done("export", "small", "--to", "onnx", "-o", "exported").err
    again = done("score", "small", *options, "--rescore", "none", "-o", "s2")
    assert again.out.strip() == "s2"
    done("search", "s2", "--keep-flops", "0.8", "-o", "m2")
    done("prune", "small", "--mask", "m2", "--calib", pictures, "--samples", "24", "-o", "smaller")
    done("eval", "smaller", "--against", "small", "--latency-runs", "1")
    refused = call("score", "small", *options, "--units", "heads,tokens")
    assert refused.code == 1 and "its tokens merge already" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("units", "code", "message"),
    [
        ("heads,tokns", 2, "Unknown units 'tokns'"),
        ("tokens", 2, "Tokens alone"),
        ("heads,heads", 2, "not a list of different ones"),
        ("heads,channels", 2, "no units of kind 'channel'"),
    ],
)
def test_units_that_are_refused(saved, pictures, units, code, message):
    folder = saved("timm-vit").blueprint.folder
    result = call("score", folder, "--calib", pictures, "--samples", "8", "--units", units, "-o", "-")
    assert result.code == code and message in result.err


def test_criteria_that_cannot_judge_tokens(saved):
    folder = saved("timm-vit").blueprint.folder
    result = call("score", folder, "--criterion", "magnitude", "--units", "heads,tokens", "-o", "-")
    assert result.code == 2 and "tokens have none" in result.err


def test_text(made, here):
    result = call("score", made.bert, "--calib", made.texts, "--units", "heads,tokens", "-o", "s")
    assert result.code == 1 and "it takes text" in result.err
