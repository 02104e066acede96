"""Query-key dimensions: the balanced basis, and what pruning them leaves of attention."""

import pytest
import torch
from helpers.models import build, make_inputs, make_pixels, structure_of

from optin_cli.artifacts.costs import HEAD_DIM
from optin_cli.errors import ArtifactError
from optin_cli.model.cut import prune_copy
from optin_cli.model.head_dims import balanced_basis, head_dims_of
from optin_cli.model.masking import masked

HEADS, DIMS = 3, 6


def moments(seed, rank=DIMS):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(HEADS, DIMS, rank, generator=generator, dtype=torch.float64)
    return factor @ factor.mT


@pytest.mark.parametrize("ranks", [(DIMS, DIMS), (DIMS, 4), (3, 5), (0, 4), (0, 0)])
def test_moments_are_equal_and_fall_in_the_balanced_basis(ranks):
    query, key = moments(1, ranks[0]), moments(2, ranks[1])
    there, back = balanced_basis(query, key)
    eye = torch.eye(DIMS, dtype=torch.float64)
    torch.testing.assert_close(there @ back, eye.expand_as(there), rtol=0, atol=1e-4)
    mine, theirs = there @ query @ there.mT, back.mT @ key @ back
    size = max(float(mine.abs().max()), float(theirs.abs().max()), 1e-9)
    if min(ranks) == DIMS:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * size)
        values = mine.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(mine, torch.diag_embed(values), rtol=0, atol=1e-6 * size)
        assert (values.diff(dim=1) <= 1e-6 * size).all()


def test_no_other_product_of_a_rank_is_closer():
    query, key = moments(3), moments(4)
    there, back = balanced_basis(query, key)

    def error(product):
        lost = torch.eye(DIMS, dtype=torch.float64) - product
        return torch.einsum("hij,hji->h", lost @ query @ lost.mT, key)

    best = error(back[..., :2] @ there[:, :2])
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        off = 0.1 * torch.randn(2, HEADS, DIMS, 2, generator=generator, dtype=torch.float64)
        assert (error((back[..., :2] + off[0]) @ (there[:, :2] + off[1].mT)) >= best).all()


@pytest.mark.parametrize("family", ["bert", "vit", "timm-vit"])
def test_dimensions_that_carry_nothing_cost_nothing(family):
    """Queries and keys of rank r, in any basis, lose nothing when r dimensions stay."""
    head = "classes" if family == "bert" else "images"
    model = build(family, head)
    structure, inputs = structure_of(model, head), make_inputs() if family == "bert" else make_pixels(model)
    products = head_dims_of(structure.kinds).products
    with torch.no_grad():
        for one in products:
            generator = torch.Generator().manual_seed(len(one.name))
            for part in range(2):
                layer = model.get_submodule((one.query, one.key)[part])
                rows = one.output(torch.arange(layer.out_features)[None], part)[0]
                mix = torch.randn(one.dims, 3, generator=generator) @ torch.randn(3, one.dims, generator=generator)
                for head_rows in rows:
                    layer.weight[head_rows] = mix @ layer.weight[head_rows]
                    layer.bias[head_rows] = mix @ layer.bias[head_rows]
        pruned = prune_copy(model, structure, {one.name: [0, 1, 2] for one in products})
        assert pruned.model.get_submodule(products[0].query).out_features < layer.out_features
        torch.testing.assert_close(pruned.model(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_pruned_queries_pad_every_part():
    """One layer for queries, keys and values: only the first two become narrower, and all are padded to one width."""
    model = build("timm-vit", "images")
    structure = structure_of(model, "images")
    one = head_dims_of(structure.kinds).products[0]
    small = prune_copy(model, structure, {one.name: [0, 1], one.heads: [1, 2]}).model
    layer = small.get_submodule(one.query)
    assert layer.weight.shape[0] == 2 * (2 + 2 + one.width)
    wide = layer(torch.randn(1, 5, layer.in_features))
    assert wide.shape == (1, 5, 3 * 2 * one.width)
    parts = wide.reshape(1, 5, 3, 2, one.width)
    assert not parts[:, :, :2, :, 2:].any()
    assert parts[:, :, 2].all()


def test_norms_of_single_dimensions_keep_them_whole():
    assert head_dims_of(structure_of(build("timm-vit", "images", qk_norm=True), "images").kinds) is None


def test_a_mask_without_any_dimension_is_refused():
    model = build("bert", "classes")
    kind = head_dims_of(structure_of(model, "classes").kinds)
    with pytest.raises(ArtifactError, match=r"keeps none of the 8 dimensions of encoder\.1\.head-dim"):
        kind.check({f"encoder.1.{HEAD_DIM}": []}, "mask.json")
    kind.check({f"encoder.1.{HEAD_DIM}": [3]}, "mask.json")


def test_masking_leaves_no_trace():
    model = build("bert", "classes")
    structure, inputs = structure_of(model, "classes"), make_inputs()
    names = head_dims_of(structure.kinds).units
    with torch.no_grad():
        whole = model(**inputs).logits
        with masked(model, structure, {name: [0] for name in names}):
            assert not torch.allclose(model(**inputs).logits, whole, rtol=1e-3)
        with masked(model, structure, {name: range(dims) for name, dims in names.items()}):
            assert torch.equal(model(**inputs).logits, whole)
        assert torch.equal(model(**inputs).logits, whole)
