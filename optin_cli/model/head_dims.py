"""Dimensions of queries and keys as units: attention heads whose scores are products of lower rank.

A head's scores q . k stay the same in any basis of its queries, with the dual basis for its keys. In the balanced one
(Moore 1981) the second moments of both are the same falling diagonal, so that leaving out its last dimensions costs the
scores least. Units are these dimensions, the same number in every head of a block: unit 0 is the first of each head.
Where no data is known, the moments are those for inputs without correlation: products of the weights.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.architectures.schema import GroupRule
from optin_cli.artifacts.costs import HEAD_DIM, GroupCost, SharedCost
from optin_cli.errors import ArtifactError
from optin_cli.model.blocks import FoundStack, Place
from optin_cli.model.config_counts import Settings
from optin_cli.model.definite import damped_cholesky
from optin_cli.model.forward import hooks
from optin_cli.model.lookup import attribute_at, module_at
from optin_cli.model.plan import Padded, Plan
from optin_cli.model.slices import applies, fits, query_width
from optin_cli.model.units import Group, Keeping, UnitKind

JITTER = 1e-9
"""What is added to moments, relative to their mean diagonal, where some dimension is never used."""


def balanced_basis(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """T and T^-1 such that T Q T^T = T^-T K T^-1 is diagonal and falls, each (..., dims, dims) float64.

    T q and T^-T k are queries and keys in the balanced basis (B. C. Moore, Principal component analysis in linear
    systems, 1981); keeping its first r dimensions is the rank-r product closest to q . k for independent q and k.

    Args:
        query, key: second moments Q and K (..., dims, dims), which may be singular.
    """

    def root(moment: torch.Tensor) -> torch.Tensor:
        mean = moment.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        return damped_cholesky(moment, torch.where(mean > 0, JITTER * mean, 1.0))[0]

    queries, keys = root(query.double()), root(key.double())
    left, values, right = torch.linalg.svd(keys.mT @ queries)
    scale = values.rsqrt()[..., None, :]
    return (keys @ left * scale).mT, queries @ right.mT * scale


@dataclass(frozen=True)
class Products:
    """The query and key layers of a block, and the group that its dimensions are.

    heads: name of the group of its heads, of which there are `count`. dims: of queries and keys; width: of values, to
    which both are padded. parts: blocks of rows of a layer that gives queries and keys, and more, at once; else 1.
    """

    name: str
    block: str
    heads: str
    count: int
    dims: int
    width: int
    query: str
    key: str
    parts: int

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Parts that each layer gives, by path: 0 for queries, 1 for keys."""
        return {self.query: (0, 1)} if self.query == self.key else {self.query: (0,), self.key: (1,)}

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of a head in each part of a layer's output."""
        return (self.dims,) if self.parts == 1 else (self.dims, self.dims, *[self.width] * (self.parts - 2))

    def output(self, found: torch.Tensor, part: int) -> torch.Tensor:
        """Queries (part 0) or keys (part 1) in the output (..., columns) of their layer: (..., heads, dims)."""
        columns = self.count * self.dims
        start = columns * part if self.parts > 1 else 0
        return found[..., start : start + columns].reshape(*found.shape[:-1], self.count, self.dims)

    def weights(self, model: nn.Module, part: int) -> torch.Tensor:
        """Weights and last the bias, if any, of queries or keys: (heads, dims, inputs [+ 1]) float64."""
        layer = model.get_submodule((self.query, self.key)[part])
        columns = [p.detach().double().reshape(len(p), -1) for p in layer.parameters(recurse=False)]
        return self.output(torch.cat(columns, dim=1).T, part).movedim(0, -1)

    def basis(self, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The balanced basis of every head by the weights alone: T and T^-1, (heads, dims, dims)."""
        queries, keys = self.weights(model, 0), self.weights(model, 1)
        # A bias of keys adds the same to all scores of a query, which the softmax takes out.
        keys = keys[..., : model.get_submodule(self.key).get_parameter("weight").shape[1]]
        return balanced_basis(queries @ queries.mT, keys @ keys.mT)

    def rotated(
        self, model: nn.Module, basis: tuple[torch.Tensor, torch.Tensor], heads: Sequence[int], dims: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Parameters of both layers for these heads, and these dimensions of a basis, by path.

        Args:
            basis: T and T^-1 of these heads, (heads, dims, dims).
        """
        turns = (basis[0][:, list(dims)], basis[1].mT[:, list(dims)])
        return {
            f"{path}.{name}": self._turned(parameter.detach(), [turns[part] for part in parts], list(heads))
            for path, parts in self.layers.items()
            for name, parameter in model.get_submodule(path).named_parameters(recurse=False)
        }

    def _turned(self, rows: torch.Tensor, turns: Sequence[torch.Tensor], heads: list[int]) -> torch.Tensor:
        """Rows of a layer (rows, ...) for some heads, the first parts in another basis (heads, kept dims, dims)."""
        done = []
        for number, part in enumerate(torch.split(rows, [self.count * width for width in self.widths])):
            own = part.reshape(self.count, -1, *part.shape[1:])[heads]
            if number < len(turns):
                own = torch.einsum("hrd,hd...->hr...", turns[number].to(rows.device), own.double()).to(rows.dtype)
            done.append(own.flatten(0, 1))
        return torch.cat(done)


@dataclass(frozen=True)
class HeadDims(UnitKind):
    """Query-key dimensions of all blocks of a model whose description names their layers."""

    products: tuple[Products, ...]

    @property
    def units(self) -> dict[str, int]:
        """Number of units by group name."""
        return {one.name: one.dims for one in self.products}

    def narrowed(self, kept: Keeping) -> list[tuple[Products, list[int]]]:
        """Blocks that lose dimensions, and those that they keep."""
        return [
            (one, list(kept[one.name])) for one in self.products if len(kept.get(one.name, range(one.dims))) < one.dims
        ]

    @contextlib.contextmanager
    def masked(self, model: nn.Module, kept: Keeping) -> Iterator[None]:
        """Take the dimensions that go out of the queries."""
        with hooks() as hook:
            for one, dims in self.narrowed(kept):
                there, back = one.basis(model)
                project = (back[..., dims] @ there[:, dims]).mT

                hook.after(model.get_submodule(one.query), functools.partial(_project, one, project), prepend=True)
            yield

    def cut(self, model: nn.Module, kept: Keeping, root: str) -> tuple[Plan, dict[str, torch.Tensor]]:
        """Queries and keys in the balanced basis of the weights, with fewer dimensions, padded with zeros."""
        plan, left = Plan(root=root), dict[str, torch.Tensor]()
        for one, dims in self.narrowed(kept):
            heads = list(kept.get(one.heads, range(one.count)))
            if not heads:
                continue
            there, back = one.basis(model)
            tensors = one.rotated(model, (there[heads], back[heads]), heads, dims)
            widths = list(replace(one, dims=len(dims)).widths)
            plan = plan.then(
                Plan(
                    root=root,
                    parameters={path: list(tensor.shape) for path, tensor in tensors.items()},
                    pad=[Padded(module=path, widths=widths, to=one.width) for path in one.layers],
                )
            )
            left |= tensors
        return plan, left

    def costs(self, model: nn.Module, by_module: Mapping[str, float]) -> dict[str, GroupCost]:
        """Measured cost of a dimension in all heads."""
        found = {}
        for one in self.products:
            macs, parameters = 0.0, 0
            for path, parts in one.layers.items():
                row = sum(p.numel() // len(p) for p in model.get_submodule(path).parameters(recurse=False))
                macs += by_module.get(path, 0.0) * len(parts) / sum(one.widths)
                parameters += row * one.count * len(parts)
            found[one.name] = GroupCost(
                kind=HEAD_DIM,
                block=one.block,
                units=one.dims,
                unit_width=one.count,
                unit_macs=macs,
                unit_parameters=parameters,
                least=1,
                shared={one.heads: SharedCost(macs=macs / one.count, parameters=parameters // one.count)},
                config=None,
            )
        return found

    def settings(self, kept: Keeping) -> tuple[Settings, list[str]]:
        """No config states that queries are narrower than values."""
        few = self.narrowed(kept)
        return {}, [f"its config has no key for queries and keys of {len(few[0][1])} dimensions"] if few else []

    def check(self, kept: Keeping, name: str) -> None:
        """Refuse a mask that leaves queries no dimension."""
        for one in self.products:
            if one.name in kept and not kept[one.name]:
                raise ArtifactError(
                    f"{name} keeps none of the {one.dims} dimensions of {one.name}; queries and keys need at least 1.",
                    hint=f"Keep 1 or more, or remove the heads themselves, {one.heads}.",
                )

    def changes(self, kept: Keeping, group: Group) -> bool:
        """Whether the heads of the group lose dimensions."""
        return any(one.heads == group.name for one, _ in self.narrowed(kept))


def _project(one: Products, by: torch.Tensor, _module: nn.Module, _inputs: object, out: torch.Tensor) -> torch.Tensor:
    """A query layer's output with every head's queries projected; by: (heads, dims, dims), from the right."""
    queries = torch.einsum("...hd,hde->...he", one.output(out, 0), by.to(out))
    return torch.cat([queries.flatten(-2), out[..., one.count * one.dims :]], dim=-1)


def head_dims_of(kinds: Sequence[UnitKind]) -> HeadDims | None:
    """The query-key dimensions among the kinds of a structure; None where its description does not name the layers."""
    return next((kind for kind in kinds if isinstance(kind, HeadDims)), None)


def find_head_dims(model: nn.Module, stacks: Sequence[FoundStack], _root: str, problems: list[str]) -> HeadDims | None:
    """Those of all blocks whose rule names the query and key layers."""
    found = (
        _find_products(model, rule, place, block, problems)
        for stack in stacks
        for block, place in stack.places.items()
        for rule in stack.rule.groups
        if rule.query_key is not None and applies(model, rule, place) and fits(model, rule.query_key.when, place)
    )
    products = tuple(one for one in found if one is not None)
    return HeadDims(products) if products else None


def _find_products(model: nn.Module, rule: GroupRule, place: Place, block: str, problems: list[str]) -> Products | None:
    assert rule.query_key is not None
    query, key = place(rule.query_key.query), place(rule.query_key.key)
    layer, consumer = module_at(model, query), module_at(model, place(rule.consumer))
    problems += [
        f"{block}: {path} is a {type(found).__name__}, expected a Linear"
        for path in dict.fromkeys((query, key))
        if not isinstance(found := module_at(model, path), nn.Linear)
    ]
    width = attribute_at(model, place(str(rule.unit_width)))
    if not isinstance(layer, nn.Linear) or not isinstance(consumer, nn.Linear) or not isinstance(width, int):
        return None
    asked = f"{rule.query_key.query}.weight"
    parts = next((s.parts for s in rule.slices if asked in s.parameters and isinstance(s.parts, int)), 1)
    count = consumer.in_features // width
    if not count:
        return None
    shared = 1 + (query == key)
    dims = query_width(layer.out_features, count, shared, width * (parts - shared))
    return Products(
        f"{block}.{HEAD_DIM}", block, f"{block}.{rule.name or rule.kind}", count, dims, width, query, key, parts
    )
