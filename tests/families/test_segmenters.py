"""Models that segment images: costs at two sizes, distances of their outputs, scores of several stacks in one model."""

import pytest
import torch
from helpers.estimators import assert_close, exact, sketch
from helpers.models import IMAGES, build, clone, make_pixels, random_kept, structure_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optin_cli.architectures.registry import find_architecture, known_heads
from optin_cli.data.batch import Batch
from optin_cli.model.costs import SAMPLE_MACS, count_macs
from optin_cli.model.cut import cut
from optin_cli.model.decisions import noting_decisions, repeating_decisions
from optin_cli.model.forward import final_outputs
from optin_cli.model.masking import masked
from optin_cli.scoring.distances import output_distance
from optin_cli.scoring.sketch import output_projection

SEGMENTERS = [name for name in IMAGES if name.startswith(("mask", "segformer", "upernet"))]
SAMPLING = {torch.ops.aten.grid_sampler_2d: lambda *_, out_shape, **__: 2 * SAMPLE_MACS * out_shape.numel()}


def batch_of(model, rows=2):
    return Batch(make_pixels(model, rows), None, tuple(f"image {row}" for row in range(rows)))


@pytest.mark.parametrize("family", SEGMENTERS)
@pytest.mark.parametrize("size", [(32, 48), (64, 96)])
def test_macs_are_those_of_the_flop_counter_at_any_size(family, size):
    model, inputs = build(family), {"pixel_values": torch.zeros(1, 3, *size)}
    structure_of(model)
    with (
        FlopCounterMode(display=False, custom_mapping=SAMPLING) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        model(**inputs)
    assert count_macs(model, inputs)[0] == counter.get_total_flops() / 2


@pytest.mark.parametrize("family", SEGMENTERS)
def test_stacks_follow_each_other_in_order_of_execution(family):
    """Exact removal reuses the outputs of all earlier blocks, which changes nothing; the sketch sees every unit."""
    model = build(family, dtype=torch.float64)
    structure, batch = structure_of(model), batch_of(model)
    batch = Batch({name: tensor.double() for name, tensor in batch.inputs.items()}, None, batch.keys)
    units = {group.name: range(0, group.units, 1 if group.kind == "head" else 7) for group in structure.groups}
    found = exact(model, structure, batch, units=units)
    assert_close(found, exact(model, structure, batch, units=units, rows=None))
    assert all((values >= 0).all() and (values > 0).any() for values in found.values())
    plain = build(family)
    assert all((values > 0).any() for values in sketch(plain, structure_of(plain), batch_of(plain)).values())


@pytest.mark.parametrize(
    ("auto_class", "shapes"),
    [
        (
            "AutoModelForUniversalSegmentation",
            {"class_queries_logits": (1, 4, 3), "masks_queries_logits": (1, 4, 3, 5)},
        ),
        ("AutoModelForSemanticSegmentation", {"logits": (1, 3, 4, 5)}),
    ],
)
def test_sketched_outputs_are_the_second_order_of_their_distance(auto_class, shapes):
    torch.manual_seed(0)
    rules = tuple(known_heads()[auto_class].outputs)
    batch = Batch({"pixel_values": torch.zeros(1, 3, 8, 8)}, None, ("a",))
    here = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    change = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    laid, moved = final_outputs(here, rules, batch), final_outputs(change, rules, batch)
    for rule, output, step in zip(rules, laid, moved, strict=True):
        expected = output_distance(output + 1e-4 * step, output, rule.kind, 2.0) / 1e-8
        slopes = []
        for _ in range(4000):
            signs = torch.randint(0, 2, output.shape) * 2.0 - 1
            scalar = output_projection(output.requires_grad_(), signs, rule, 2.0, batch)
            (gradient,) = torch.autograd.grad(scalar.sum(), output)
            slopes.append((gradient * step).sum().square())
        assert float(torch.stack(slopes).mean()) == pytest.approx(float(expected), rel=0.1)
    pixels = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    assert all(output.dim() < 4 for output in laid)
    assert {output.numel() for output in laid} >= {torch.Size(shape).numel() for shape in pixels.values()}


def test_a_cut_model_repeats_the_decisions_of_the_masked_one():
    """A threshold that rounding may cross decides where queries look."""
    model = build("mask2former")
    structure, batch = structure_of(model), batch_of(model)
    kept = random_kept(structure, 1)
    small = clone(model)
    cut(small, structure, kept)
    with masked(model, structure, kept), noting_decisions(model, structure) as decided, torch.no_grad():
        expected = model(**batch.inputs).masks_queries_logits
    assert len(decided) == 4 and all(decision.dtype == torch.bool for decision in decided)
    other = [~decision for decision in decided]
    with repeating_decisions(small, structure, other), torch.no_grad():
        assert not torch.allclose(small(**batch.inputs).masks_queries_logits, expected, rtol=1e-3)
    with repeating_decisions(small, structure, decided), torch.no_grad():
        torch.testing.assert_close(small(**batch.inputs).masks_queries_logits, expected, rtol=1e-3, atol=1e-3)


def test_backbones_are_the_stacks_of_their_own_family():
    names = [(stack.name, stack.blocks, stack.optional) for stack in find_architecture("upernet").stacks]
    assert names == [
        ("backbone-encoder", "backbone.swin.encoder.layers.*.blocks.*", True),
        ("backbone-encoder", "backbone.encoder.stages.*.layers.*", True),
        ("pixels", "decode_head", False),
    ]


def test_queries_normalised_first_stay_whole():
    """Their residual sums are elsewhere."""
    names = {group.name for group in structure_of(build("mask2former", pre_norm=True)).groups}
    assert not any(name.startswith("queries") for name in names) and "pixels.0.head" in names
