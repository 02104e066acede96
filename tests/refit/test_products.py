"""Refit of query and key layers."""

import copy

import pytest
import torch
from helpers.models import build, make_inputs, make_pixels, structure_of

from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.head_dims import head_dims_of
from optin_cli.refit.products import ProductMoments, measure_products, refit_products


def batches_of(family, model):
    for number in range(4):
        inputs = make_inputs(8, seed=number) if family == "bert" else make_pixels(model, 8, seed=number)
        yield Batch(inputs, None, tuple(f"{number}.{row}" for row in range(8)))


@pytest.fixture(params=["bert", "vit", "timm-vit"])
def case(request):
    head = "classes" if request.param == "bert" else "images"
    model = build(request.param, head)
    return model, structure_of(model, head), [*batches_of(request.param, model)]


def test_scores_get_nearer_to_the_originals(case):
    model, structure, batches = case
    products = head_dims_of(structure.kinds).products
    kept = {one.name: [0, 2, 3] for one in products} | {products[0].heads: [1, 2], products[1].heads: []}
    small = copy.deepcopy(model)
    cut(small, structure, kept)
    before = {name: parameter.clone() for name, parameter in small.named_parameters()}
    report = refit_products(PrunedModel(model, small, structure, kept), batches)
    assert set(report) == {products[0].name, products[2].name}
    assert all(part.kept and part.after < part.before < 1 for part in report.values())
    changed = {name for name, parameter in small.named_parameters() if not torch.equal(parameter, before[name])}
    layers = {path for one in (products[0], products[2]) for path in (one.query, one.key)}
    assert {name.rpartition(".")[0] for name in changed} == layers


def test_nothing_is_done_where_no_dimension_goes(case):
    model, structure, batches = case
    kept = {group.name: [0, 1] for group in structure.groups}
    assert refit_products(PrunedModel(model, model, structure, kept), batches) == {}


def test_moments_are_those_of_real_tokens():
    model = build("bert", "classes")
    structure = structure_of(model, "classes")
    one = head_dims_of(structure.kinds).products[0]
    batch = next(batches_of("bert", model))
    seen = []
    for path in (one.query, one.key):
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    fitted, judged = measure_products(model, [one], [batch])[one.name]
    real = batch.inputs["attention_mask"].bool()
    queries, keys = (one.output(out, part)[real].double() for part, out in enumerate(seen))
    both = fitted.plus(judged)
    assert int(both.count) == int(real.sum())
    found, spread = both.second_moments()
    torch.testing.assert_close(found, torch.einsum("nhi,nhj->hij", queries, queries) / len(queries))
    centred = keys - keys.mean(dim=0)
    torch.testing.assert_close(spread, torch.einsum("nhi,nhj->hij", centred, centred) / len(keys))


def test_the_error_is_that_of_the_products():
    model = build("bert", "classes")
    one = head_dims_of(structure_of(model, "classes").kinds).products[0]
    moments = ProductMoments.zeros(one)
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 40, one.count, one.dims, generator=generator, dtype=torch.float64)
    moments.add(0, queries)
    moments.add(1, keys)
    there, back = one.basis(model)
    kept = back[..., [0, 2]] @ there[:, [0, 2]]
    centred = keys - keys.mean(dim=0)
    whole = torch.einsum("nhi,mhi->hnm", queries, centred)
    rest = torch.einsum("nhj,hij,mhi->hnm", queries, kept, centred)
    expected = (whole - rest).square().sum() / whole.square().sum()
    assert moments.error((there, back), [0, 2], range(one.count)) == pytest.approx(float(expected))
