"""Every family and head: masked equals pruned, declared cost equals measured cost, pruning twice is pruning once."""

from collections import namedtuple

import pytest
import torch
from helpers.models import (
    DECODERS,
    FAMILIES,
    HEADS,
    IMAGES,
    OTHER_HEADS,
    build,
    clone,
    make_inputs,
    make_pixels,
    random_dims,
    random_kept,
    root_of,
    structure_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optin_cli.data.batch import Batch
from optin_cli.model.costs import count_macs, count_parameters, measure_costs
from optin_cli.model.cut import cut
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.searching.costs import Costs

Tiny = namedtuple("Tiny", "model structure root head inputs")

SAMPLING = {torch.ops.aten.grid_sampler_2d: lambda *_shapes, out_shape, **_options: 2 * 5 * out_shape.numel()}
"""The counter does not know the sampling of deformable attention: four neighbours and a weight for every value."""
SENSITIVE = {"mask2former"}
"""Families that magnify rounding: where to sample depends on what was sampled before."""
CASES = [
    *((family, head) for family in FAMILIES for head in HEADS),
    *((family, "images") for family in IMAGES),
    *((family, "next") for family in DECODERS),
    *((family, "pretraining") for family in ("bert", "albert", "electra")),
    *(("bert", head) for head in OTHER_HEADS if head != "pretraining"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def tiny(request):
    family, head = request.param
    dtype = torch.float64 if family in SENSITIVE else torch.float32
    model = build(family, head, dtype=dtype)
    pixels = {name: tensor.to(dtype) for name, tensor in make_pixels(model).items()} if family in IMAGES else None
    inputs = pixels or make_inputs()
    if head == "choices":
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    return Tiny(model, structure_of(model, head), root_of(model), head, inputs)


def empty(groups, *kinds):
    """No unit of groups of those kinds, or as few as their blocks run with."""
    return {group.name: list(range(group.least)) for group in groups if group.kind in kinds}


def cut_copy(tiny, *masks):
    """A copy cut by each mask in turn; its structure is found anew before each cut."""
    model = clone(tiny.model)
    for kept in masks:
        cut(model, structure_of(model, tiny.head), kept)
    return model


@torch.no_grad()
def trajectory(tiny, model=None):
    """Outputs, and block outputs at real tokens where cutting leaves them their width."""
    batch = Batch(tiny.inputs, None, tuple(map(str, range(len(next(iter(tiny.inputs.values())))))))
    found = observe(model or tiny.model, tiny.structure, batch)
    outward = [g for g in tiny.structure.groups if not g.residual and not g.consumer.startswith(f"{g.block_path}.")]
    narrowed, features = {group.block_path for group in outward}, found.features
    if narrowed:
        blocks = zip(tiny.structure.blocks, features, strict=True)
        features = [feature for block, feature in blocks if block.path not in narrowed]
    return [*found.outputs, *(f[batch.mask_for(f)] for f in features)]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b[b.isfinite()].abs().max().item())


def compose(structure, first, second):
    """The mask of the original that equals cutting by `first`, then by `second`."""
    return {g.name: [first[g.name][u] for u in second.get(g.name, range(len(first[g.name])))] for g in structure.groups}


class TestEveryFamily:
    def test_masked_equals_cut(self, tiny):
        groups = tiny.structure.groups
        last = [g for g in groups if g.block == groups[-1].block]
        masks = [random_kept(tiny.structure, 1), random_kept(tiny.structure, 2, share=0.8)]
        masks += [empty(groups[:2], "head"), empty(groups[:2], "neuron"), empty(last, "head", "neuron")]
        masks += [empty(groups, "head"), empty(groups, "neuron"), empty(groups, "head", "neuron", "channel")]
        if dims := random_dims(tiny.structure, 6):
            masks += [dims, {**random_kept(tiny.structure, 7), **dims}, {**empty(groups[:2], "head"), **dims}]
        masks += [{groups[0].name: [1, 2]}, {}]
        whole = trajectory(tiny)
        for kept in masks:
            with masked(tiny.model, tiny.structure, kept):
                expected = trajectory(tiny)
            assert_same(trajectory(tiny, cut_copy(tiny, kept)), expected)
            assert not kept or not torch.allclose(expected[0], whole[0], rtol=1e-3)
        assert all(torch.equal(a, b) for a, b in zip(trajectory(tiny), whole, strict=True)), "masking left a trace"

    def test_declared_costs_are_measured_costs(self, tiny):
        totals, costs = measure_costs(tiny.model, tiny.structure, tiny.inputs, 0)
        # The counter does not know the fused attention of grouped queries; as single products it does.
        with (
            FlopCounterMode(display=False, custom_mapping=SAMPLING) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            tiny.model(**tiny.inputs)
        assert totals.macs == counter.get_total_flops() / 2
        groups = tiny.structure.groups
        masks = [random_kept(tiny.structure, 3), empty(groups, "head", "neuron", "channel")]
        masks += [{**masks[0], **random_dims(tiny.structure, 8)}]
        for kept in masks:
            model = cut_copy(tiny, kept)
            gone = {name: cost.units - len(kept.get(name, range(cost.units))) for name, cost in costs.items()}
            macs = sum(costs[name].unit_macs * n for name, n in gone.items())
            parameters = sum(costs[name].unit_parameters * n for name, n in gone.items())
            for name, other, both in ((n, o, both) for n, c in costs.items() for o, both in c.shared.items()):
                macs -= both.macs * gone[name] * gone[other]
                parameters -= both.parameters * gone[name] * gone[other]
            assert count_macs(model, tiny.inputs)[0] == pytest.approx(totals.macs - macs, rel=1e-12)
            assert count_parameters(model) == totals.parameters - parameters
            share = Costs(costs, totals).remaining(kept)
            assert share["macs"] == pytest.approx(count_macs(model, tiny.inputs)[0] / totals.macs)

    def test_head_dims_are_cut_twice(self, tiny):
        first = random_dims(tiny.structure, 9, share=0.75)
        once = cut_copy(tiny, {**first, **random_kept(tiny.structure, 10)})
        found = structure_of(once, tiny.head)
        second = random_dims(found, 11)
        assert second.keys() == first.keys()
        with masked(once, found, second):
            expected = trajectory(tiny, once)
        assert_same(trajectory(tiny, cut_copy(tiny, {**first, **random_kept(tiny.structure, 10)}, second)), expected)

    def test_cutting_twice_is_cutting_once(self, tiny):
        first = random_kept(tiny.structure, 4, share=0.7)
        once = cut_copy(tiny, first)
        for second in (
            random_kept(structure_of(once, tiny.head), 5),
            empty(tiny.structure.groups[:1], "head", "neuron", "channel"),
        ):
            both = cut_copy(tiny, compose(tiny.structure, first, second))
            twice = cut_copy(tiny, first, second)
            assert {n: p.shape for n, p in twice.named_parameters()} == {n: p.shape for n, p in both.named_parameters()}
            assert all(torch.equal(a, b) for a, b in zip(twice.parameters(), both.parameters(), strict=True))
            assert_same(trajectory(tiny, twice), trajectory(tiny, both))
