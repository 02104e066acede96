"""Moments of consumers' inputs and output gradients, against a direct computation, and whatever the batching."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from helpers.models import FAMILIES, IMAGES, build, make_batch, make_pixels, pick, structure_of

from optin_cli.data.batch import Batch
from optin_cli.model.forward import hooks, observe
from optin_cli.refit.design_matrix import input_rows
from optin_cli.scoring import moments as scoring_moments
from optin_cli.scoring.moments import (
    COUNTS,
    Moments,
    add_gram,
    empty_moments,
    energy_batch,
    is_solvable,
    mirrored,
    removal_importance,
    sensitivity_batch,
    with_intercept,
)
from optin_cli.scoring.sketch import Objective, probe_scalar, sketch_batch

OBJECTIVE = Objective(1.0, 10.0, 4.0)


def moments_of(model, batches, *, probes=2, groups=None, objective=OBJECTIVE):
    structure = structure_of(model)
    structure = structure.with_groups(groups or structure.groups)
    moments = empty_moments(model, [group for group in structure.groups if is_solvable(model, group)])
    for batch in batches:
        sensitivity_batch(model, structure, moments, batch, objective, probes=probes, seed=3)
    return moments


def images_of(model, rows=4):
    return Batch(make_pixels(model, rows), None, tuple(f"image {row}" for row in range(rows)))


def samples_for(model, family):
    return images_of(model) if family in IMAGES else make_batch(3, padding=4)


def assert_alike(first, second, tolerance=1e-4):
    assert set(first) == set(second)
    for path, mine in first.items():
        theirs = second[path]
        assert mine.counts.tolist() == theirs.counts.tolist(), path
        for found, expected in (
            (mine.input_moment(centred=False), theirs.input_moment(centred=False)),
            (mine.output_curvature(), theirs.output_curvature()),
            (mine.total, theirs.total),
        ):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_a_gram_matrix_in_strips_is_the_gram_matrix():
    rows = torch.randn(20, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(600, 600, dtype=torch.float64)
    for part in rows.split(7):
        add_gram(total, part)
    torch.testing.assert_close(mirrored(total), rows.T @ rows)


def test_centred_moments_are_covariances():
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
    moments = Moments.zeros(5, 2)
    for part in x.split(13):
        moments.add_inputs(part)
    torch.testing.assert_close(moments.input_moment(centred=True), torch.cov(x.T, correction=0))
    torch.testing.assert_close(moments.input_moment(centred=False), x.T @ x / 50)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_moments_are_those_of_a_direct_computation(family):
    """Of gradients by autograd at copies of the outputs, one probe and one sample at a time."""
    model, batch = build(family), make_batch(3, padding=4)
    structure = structure_of(model)
    group = next(g for g in structure.groups if g.kind == "neuron")
    inputs, grads, seen = [], [], []

    def keep(_module, arguments, output):
        seen.append((arguments[0].detach(), output if output.requires_grad else output.detach().requires_grad_()))
        return seen[-1][1].clone()

    with hooks() as hook:
        hook.after(model.get_submodule(group.consumer), keep)
        for row in range(3):
            one = pick(batch, [row])
            for probe in range(2):
                seen.clear()
                with torch.enable_grad():
                    trajectory = observe(model, structure, one)
                    scalar = probe_scalar(trajectory, structure, one, OBJECTIVE, 3, probe).sum()
                    found = torch.autograd.grad(scalar, [output for _, output in seen])
                grads += [gradient[0] for gradient in found]
                if probe == 0:
                    inputs += [x[0] for x, _ in seen]
    x, g = torch.cat(inputs).double(), torch.cat(grads).double()
    moments = moments_of(model, [batch])[group.consumer]
    assert moments.counts.tolist() == [len(x), len(g), len(x), 3]
    torch.testing.assert_close(moments.input_moment(centred=False), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    expected = g.T @ g / len(g) * len(x) / 3
    torch.testing.assert_close(moments.output_curvature(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", [*FAMILIES, *IMAGES])
def test_sensitivities_are_those_of_the_sketch(family):
    """The sketch multiplies gates into the model and differentiates by them."""
    model = build(family)
    structure, batch = structure_of(model), samples_for(build(family), family)
    mine = sensitivity_batch(model, structure, {}, batch, OBJECTIVE, probes=2, seed=1)
    theirs = sketch_batch(model, structure, batch, OBJECTIVE, probes=2, seed=1)
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(mine[name], values, rtol=1e-3, atol=1e-4 * float(values.max()), msg=name)


def test_batching_and_padding_do_not_matter():
    model = build("bert")
    together = make_batch(4, padding=5)
    apart = [pick(together, [row]) for row in range(4)]
    assert_alike(moments_of(model, [together]), moments_of(model, apart))


@pytest.mark.parametrize("family", ["resnet", "swin", "mobilenet_v2"])
def test_batching_does_not_matter_for_images(family):
    model = build(family)
    batch = images_of(model)
    apart = [
        Batch({n: t[[row]] for n, t in batch.inputs.items()}, None, (batch.keys[row],)) for row in range(batch.size)
    ]
    assert_alike(moments_of(model, [batch]), moments_of(model, apart), tolerance=1e-3)


def test_a_convolution_is_linear_in_its_unfolded_input():
    model = build("resnet")
    batch = images_of(model)
    moments = moments_of(model, [batch], probes=1)
    group = structure_of(model).groups[0]
    consumer, seen = model.get_submodule(group.consumer), []
    columns = consumer.weight[0].numel()
    assert moments[group.consumer].total.numel() == columns == group.width * consumer.weight[0, 0].numel()
    with torch.no_grad(), hooks() as hook:
        hook.before(consumer, lambda _module, arguments: seen.append(arguments[0]))
        model(**batch.inputs)
    rows = input_rows(consumer, seen[0], batch.size, None)[..., :columns].flatten(0, 1).double()
    moment = moments[group.consumer].input_moment(centred=False)
    torch.testing.assert_close(moment, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_calls_of_shared_weights_add_up():
    model, batch = build("albert"), make_batch(2, padding=0)
    group, calls = structure_of(model).groups[0], []
    with torch.no_grad(), hooks() as hook:
        hook.after(model.get_submodule(group.consumer), lambda *_: calls.append(1))
        model(**batch.inputs)
    moments = moments_of(model, [batch])[group.consumer]
    assert len(calls) > 1
    assert moments.number("tokens") == len(calls) * 2 * batch.inputs["input_ids"].shape[1]
    assert moments.number("samples") == 2


def test_tokens_that_nothing_reads_are_left_out():
    """Of the last layer, the logits of a classifier read the first token alone."""
    model, batch = build("bert"), make_batch(3, padding=0)
    structure = structure_of(model)
    last = [g for g in structure.groups if g.block == structure.blocks[-1].name and g.kind == "neuron"]
    moments = moments_of(model, [batch], groups=last, objective=Objective(0.0, 1.0, 1.0))
    assert [moments[last[0].consumer].number(name) for name in ("positions", "tokens")] == [3, 3]


def test_hooks_are_gone_and_weights_keep_no_gradient():
    model = build("bert")
    moments_of(model, [make_batch(2)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nothing_of_a_batch_waits_for_the_garbage_collector(family, monkeypatch):
    runs = []

    class Watched(scoring_moments.Pass):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append(weakref.ref(self))

    monkeypatch.setattr(scoring_moments, "Pass", Watched)
    model = build(family)
    gc.disable()
    try:
        moments_of(model, [make_batch(2)])
        assert [run() for run in runs] == [None]
    finally:
        gc.enable()


def test_samples_without_tokens_change_nothing():
    moments = Moments.zeros(3, 2)
    moments.add_inputs(torch.zeros(0, 3))
    assert float(moments.input_moment(centred=True).abs().sum()) == 0.0
    assert float(moments.output_curvature().abs().sum()) == 0.0
    assert moments.counts.tolist() == [0] * len(COUNTS)


def test_keys_decide_which_positions_are_taken():
    model = build("timm-vgg")
    batch = images_of(model)
    renamed = replace(batch, keys=tuple(reversed(batch.keys)))
    first = moments_of(model, [batch], probes=1)
    assert all(m.number("positions") >= m.number("tokens") for m in first.values())
    assert any(m.number("positions") > m.number("tokens") for m in first.values())
    path = next(iter(first))
    again, other = (moments_of(model, [b], probes=1)[path] for b in (batch, renamed))
    assert torch.equal(first[path].square, again.square)
    assert not torch.equal(first[path].square, other.square)


def test_without_gradients_the_curvature_is_the_identity():
    """Then a loss is the squared error of the layer's output, and what a unit alone puts out its own part of it."""
    model, batch = build("bert"), make_batch(3, padding=4)
    structure = structure_of(model)
    moments = empty_moments(model, structure.groups)
    energies = energy_batch(model, structure, moments, batch)
    tokens = int(batch.token_mask.sum())
    for group in structure.groups:
        found = moments[group.consumer]
        assert found.counts.tolist() == [tokens, 0, tokens, 3]
        torch.testing.assert_close(found.output_curvature(), torch.eye(32).double() * tokens / 3)
        if group.unit_width == 1:
            weight = model.get_submodule(group.consumer).weight.double()
            alone = found.input_moment(centred=False).diagonal() * weight.square().sum(dim=0) * tokens / 3
            torch.testing.assert_close(energies[group.name].mean(dim=0), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "bare"), [("bert", False), ("llama", True), ("resnet", False), ("convnext", False)])
def test_intercepts_are_those_of_biases_and_of_batch_norms(family, bare):
    head = "next" if family == "llama" else "classes"
    model = build(family, head)
    structure, batch = structure_of(model, head), samples_for(model, family)
    found = with_intercept(model, structure, batch)
    assert found == (frozenset() if bare else frozenset(group.consumer for group in structure.groups))


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_the_copy_of_a_unit_costs_next_to_nothing(kind):
    """What one of two equal units puts out, the other can put out too; the sketch takes each for itself."""
    model, batch = build("bert"), make_batch(24, tokens=12)
    structure = structure_of(model)
    group = next(g for g in structure.groups if g.kind == kind)
    for piece in group.slices:
        if piece.parameter != f"{group.consumer}.weight":
            tensor = model.get_parameter(piece.parameter)
            one, two = (piece.indices(group.units, [unit]) for unit in (0, 2))
            tensor.index_copy_(piece.axis, two, tensor.index_select(piece.axis, one))
    moments = empty_moments(model, [group])
    alone = sensitivity_batch(model, structure, moments, batch, OBJECTIVE, probes=2, seed=0)[group.name].mean(dim=0)
    found = removal_importance(model, group, moments[group.consumer], centred=True, damping=0.01)
    first, second = sorted(found[[0, 2]].tolist())
    assert first < 0.1 * float(found.median()) and second > 10 * first
    assert float(alone[[0, 2]].min()) > 0.1 * float(alone.median())


@pytest.mark.parametrize("family", ["bert", "albert", "vit", "swin", "mobilenet_v2"])
def test_sensitivities_of_inputs_without_their_mean(family):
    """Against gates that scale the input's distance from its mean, differentiated by autograd."""
    model = build(family)
    structure, batch = structure_of(model), samples_for(model, family)
    alone = empty_moments(model, structure.groups)
    sketched = sensitivity_batch(model, structure, alone, batch, OBJECTIVE, probes=2, seed=3)
    for group in structure.groups:
        moments, consumer = alone[group.consumer], model.get_submodule(group.consumer)
        shape = [-1 if axis == group.axis % 4 else 1 for axis in range(4)] if family == "mobilenet_v2" else [-1]
        mean = (moments.total / moments.number("tokens")).float().reshape(shape)
        gates = torch.ones(batch.size, group.units, requires_grad=True)

        def gate(_module, arguments, group=group, mean=mean, gates=gates):
            x = arguments[0]
            each = gates.repeat_interleave(len(x) // batch.size, dim=0).repeat_interleave(group.unit_width, dim=1)
            places = [1] * x.dim()
            places[0], places[group.axis] = each.shape
            return (mean + (x - mean) * each.reshape(places),)

        found = torch.zeros(group.units, dtype=torch.float64)
        with torch.enable_grad(), hooks() as hook:
            hook.before(consumer, gate)
            trajectory = observe(model, structure, batch)
            for probe in range(2):
                scalar = probe_scalar(trajectory, structure, batch, OBJECTIVE, 3, probe).sum()
                (slope,) = torch.autograd.grad(scalar, gates, retain_graph=True)
                found += slope.double().square().mean(dim=0) / 2
        weight, squared = consumer.weight.flatten(1), sketched[group.name].mean(dim=0)
        mine = moments.lone_sensitivity(group.name, weight, squared)
        torch.testing.assert_close(mine, found, rtol=1e-2, atol=1e-3 * float(found.max()), msg=group.name)


@pytest.mark.parametrize("copies", [4, 9])
def test_errors_of_alike_positions_add_up(copies):
    """A layer that sees the same n times over a sample costs n^2 as much; independent errors would cost n times."""
    draw = torch.Generator().manual_seed(0)
    x, g, weight = (torch.randn(*shape, generator=draw).double() for shape in ((200, 6), (200, 4), (4, 6)))
    weight = torch.nn.Parameter(weight)
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(6, 4).double()})
    model["layer"].weight = weight
    group = replace(structure_of(build("bert")).groups[0], name="group", consumer="layer", units=6, unit_width=1)
    found = []
    for times in (1, copies):
        moments = Moments.zeros(6, 4, {"group": 6})
        slopes = times * (g @ weight.detach()) * x
        moments.add_inputs(x.repeat(times, 1))
        add_gram(moments.curvature, g.repeat(times, 1))
        moments.add_pull(times * g, {"group": slopes})
        moments.count(gradients=200 * times, positions=200 * times, samples=200)
        squared = slopes.square().mean(dim=0)
        options = {"centred": True, "damping": 0.01}
        scaled = removal_importance(model, group, moments, **options, squared=squared)
        independent = removal_importance(model, group, moments, **options)
        assert scaled.argsort().tolist() == independent.argsort().tolist()
        found.append((scaled, independent))
    (one, plain), (more, apart) = found
    torch.testing.assert_close(more, one * copies**2)
    torch.testing.assert_close(apart, plain * copies)
