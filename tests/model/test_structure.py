"""One test class proves every description: masked = cut, declared cost = measured cost, for each family and head."""

import json
from collections import namedtuple

import pytest
import torch
from helpers.models import (
    DECODERS,
    FAMILIES,
    HEADS,
    IMAGES,
    build,
    clone,
    make_inputs,
    make_pixels,
    random_kept,
    root_of,
    structure_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optin_cli.architectures.registry import FOLDER, find_architecture, known_architectures, parse_architecture
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError
from optin_cli.model.costs import count_macs, count_parameters, measure_costs
from optin_cli.model.cut import cut
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.searching.costs import Costs

Tiny = namedtuple("Tiny", "model structure root head inputs")
CASES = [
    *((family, head) for family in FAMILIES for head in HEADS),
    *((family, "images") for family in IMAGES),
    *((family, "next") for family in DECODERS),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def tiny(request):
    family, head = request.param
    model = build(family, head)
    inputs = make_pixels(model) if family in IMAGES else make_inputs()
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
    cut_away = {piece.parameter for group in tiny.structure.groups for piece in group.slices if piece.axis == 0}
    whole = [f"{block.path}.weight" not in cut_away for block in tiny.structure.blocks]
    features = found.features if all(whole) else []
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
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            tiny.model(**tiny.inputs)
        assert totals.macs == counter.get_total_flops() / 2
        groups = tiny.structure.groups
        for kept in (random_kept(tiny.structure, 3), empty(groups, "head", "neuron", "channel")):
            model = cut_copy(tiny, kept)
            gone = {name: costs[name].units - len(units) for name, units in kept.items()}
            macs = sum(costs[name].unit_macs * n for name, n in gone.items())
            parameters = sum(costs[name].unit_parameters * n for name, n in gone.items())
            for name, other, both in ((n, o, both) for n, c in costs.items() for o, both in c.shared.items()):
                macs -= both.macs * gone[name] * gone[other]
                parameters -= both.parameters * gone[name] * gone[other]
            assert count_macs(model, tiny.inputs)[0] == pytest.approx(totals.macs - macs, rel=1e-12)
            assert count_parameters(model) == totals.parameters - parameters
            share = Costs(costs, totals).remaining(kept)
            assert share["macs"] == pytest.approx(count_macs(model, tiny.inputs)[0] / totals.macs)

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

    # save -> fresh-process reload, for every family and head: tests/test_pipeline.py.


def test_every_shipped_description_is_tested():
    images = [(library, kind) for library, kind, _ in IMAGES.values()]
    mine = {model_type for model_type, _ in (FAMILIES | DECODERS).values()} | {
        k for name, k in images if name == "transformers"
    }
    assert set(known_architectures()) == mine
    built = {type(build(family)).__name__ for family, (library, _, _) in IMAGES.items() if library == "timm"}
    assert set(known_architectures("timm")) == built


# Descriptions that do not fit


def described(tmp_path, change):
    """bert.json after `change(document, head group, neuron group)`, parsed from a file."""
    raw = json.loads((FOLDER / "bert.json").read_text())
    change(raw, *raw["stacks"][0]["groups"])
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    return parse_architecture(path)


def put(target, key, value):
    target[key] = value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _raw, head, _neuron: put(head, "blok", 1), ["stacks.0.groups.0.blok", "Extra inputs"]),
        (lambda _raw, _head, neuron: put(neuron, "kind", "nerve"), ["stacks.0.groups.1.kind"]),
        (lambda raw, _head, _neuron: put(raw, "stacks_of", "bert"), ["either stacks or stacks_of"]),
        (
            lambda _raw, head, _neuron: put(head["slices"][0], "axis", -1),
            ["slices.0.axis", "greater than or equal to 0"],
        ),
        (lambda _raw, head, _neuron: put(head["slices"][0], "parts", 0), ["slices.0.parts"]),
        (
            lambda raw, head, _neuron: (put(raw, "extra", 1), put(head, "kind", "hed"), head.pop("consumer")),
            ["extra", "groups.0.kind", "groups.0.consumer"],
        ),
    ],
)
def test_invalid_descriptions_are_refused_with_all_problems(tmp_path, change, named):
    with pytest.raises(ArchitectureError) as caught:
        described(tmp_path, change)
    assert all(name in caught.value.message for name in [*named, "mine.json"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw, _head, _neuron: put(raw["stacks"][0], "blocks", "encoder.layers.*"), ["encoder.layers.*"]),
        (
            lambda _raw, _head, neuron: neuron["slices"][0]["parameters"].append("inter.dense.weight"),
            ["parameter bert.encoder.layer.0.inter.dense.weight does not exist", "encoder.2.neuron"],
        ),
        (lambda _raw, _head, neuron: put(neuron["slices"][1], "axis", 0), ["40", "32", "disagree"]),
        (lambda _raw, _head, neuron: put(neuron["slices"][0], "axis", 1), ["has shape (40,), no axis 1"]),
        (
            lambda _raw, _head, neuron: put(neuron, "unit_width", 7),
            ["40, not a multiple of parts x unit width = 1 x 7"],
        ),
        (lambda _raw, head, _neuron: put(head["slices"][0], "parts", 3), ["length 32, not a multiple", "3 x 8"]),
        (lambda _raw, head, _neuron: put(head, "unit_width", "attention.self.size"), ["attention.self.size is None"]),
        (lambda _raw, head, _neuron: put(head, "consumer", "attention.dense"), ["attention.dense does not exist"]),
        (lambda _raw, head, _neuron: put(head, "mixer", "attention.mix"), ["attention.mix does not exist"]),
        (lambda _raw, head, _neuron: put(head, "set_units", ["attention.self.heads"]), ["attribute", "self.heads"]),
        (
            lambda _raw, head, neuron: (
                put(head, "consumer", "here"),
                put(neuron, "consumer", "there"),
                put(neuron["slices"][1], "axis", 2),
            ),
            ["layer.0.here", "layer.0.there", "no axis 2", "layer.2.here"],
        ),
    ],
)
def test_descriptions_that_do_not_fit_name_every_problem(tmp_path, change, named):
    model = build("bert")
    with pytest.raises(ArchitectureError) as caught:
        structure_of(model, architecture=described(tmp_path, change))
    assert all(name in caught.value.message for name in [*named, "'bert'", "BertForSequenceClassification"])


def test_unreadable_descriptions(tmp_path):
    with pytest.raises(ArchitectureError, match="cannot be read"):
        parse_architecture(tmp_path / "none.json")
    path = tmp_path / "mine.json"
    path.write_text("{")
    with pytest.raises(ArchitectureError, match="not a valid architecture"):
        parse_architecture(path)
    path.write_text(json.dumps({"family": "x", "library": "transformers", "model_types": ["x"], "stacks_of": "brt"}))
    with pytest.raises(ArchitectureError, match="not described") as caught:
        parse_architecture(path)
    assert "Did you mean bert" in caught.value.hint


def test_unknown_model_type_suggests_the_nearest():
    with pytest.raises(ArchitectureError, match="'brt'") as caught:
        find_architecture("brt")
    assert "Did you mean bert" in caught.value.hint
    assert "--architecture" in caught.value.hint
