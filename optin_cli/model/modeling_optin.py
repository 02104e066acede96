"""A stock model and a cut plan in; the same model with the planned shapes out, ready for the cut weights.

This file is self-contained on purpose (torch only): `prune` ships its text beside the weights, so that a cut
checkpoint loads with plain transformers and `trust_remote_code=True`, without optin installed.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import nn


def apply_plan(model: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """Give `model` the shapes, attributes and emptied modules of a cut plan. Weights are left to be loaded.

    Args:
        model: a module whose base model lies at `plan["root"]`, or is that base model itself.
        plan: {"root": path, "parameters": {path: shape}, "attributes": {path: int},
            "select": [{"module", "argument", "axis", "index"}], "attend": [path],
            "empty": [{"module", "consumer", "norm", "remove", "returns"}],
            "merge": None or {"blocks": [path], "counts": [int], "special": int, "argument": str}}.
    """
    root = plan["root"] + "." if plan["root"] else ""
    inside = not root or any(path.startswith(root) for path, _ in model.named_modules())

    def locate(path: str) -> tuple[Any, str]:
        owner, _, leaf = (path if inside else path.removeprefix(root)).rpartition(".")
        return model.get_submodule(owner), leaf

    for path, shape in plan["parameters"].items():
        owner, leaf = locate(path)
        _resize(owner, leaf, shape)
    for path, value in plan["attributes"].items():
        owner, leaf = locate(path)
        setattr(owner, leaf, value)
    for rule in plan["select"]:
        owner, leaf = locate(rule["module"])
        _select(getattr(owner, leaf), rule)
    for path in plan.get("attend", []):
        owner, leaf = locate(path)
        module = getattr(owner, leaf)
        module.forward = types.MethodType(_attend, module)
    for rule in plan["empty"]:
        owner, leaf = locate(rule["module"])
        _empty(getattr(owner, leaf), rule)
        for path in rule.get("remove", []):
            owner, leaf = locate(path)
            setattr(owner, leaf, None)
    if rule := plan.get("merge"):
        blocks = [getattr(owner, leaf) for owner, leaf in map(locate, rule["blocks"])]
        merge_between(blocks, rule["counts"], rule["special"], rule["argument"])
    return model


def _resize(owner: nn.Module, leaf: str, shape: list[int]) -> None:
    """Give a parameter or buffer its new shape, and its module the sizes that follow from it.

    A buffer keeps its first entries: those that are not stored, and so not loaded, are alike for all units. A bias
    that the module lacks is given to it.
    """
    old = getattr(owner, leaf)
    if old is None:
        old = owner.weight
    if leaf in owner._buffers:
        owner._buffers[leaf] = old[tuple(slice(length) for length in shape)].clone()
    else:
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
    if isinstance(owner, nn.Linear) and leaf == "weight":
        owner.out_features, owner.in_features = shape
    elif isinstance(owner, nn.Conv2d) and leaf == "weight":
        # A depthwise convolution has as many groups as channels; in any other, groups stay.
        owner.groups = owner.groups if owner.groups == 1 else owner.groups * shape[0] // owner.out_channels
        owner.out_channels, owner.in_channels = shape[0], shape[1] * owner.groups
    elif isinstance(owner, nn.BatchNorm2d) and leaf in ("weight", "running_mean"):
        owner.num_features = shape[0]


def _select(module: nn.Module, rule: dict[str, Any]) -> None:
    """Keep only the entries of one argument that belong to the units the module still has."""
    signature = inspect.signature(module.forward)

    def choose(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        bound = signature.bind(*args, **kwargs)
        value = bound.arguments.get(rule["argument"])
        if value is not None and value.shape[rule["axis"]] != 1:
            index = torch.tensor(rule["index"], device=value.device)
            bound.arguments[rule["argument"]] = value.index_select(rule["axis"], index)
        return bound.args, bound.kwargs

    module.register_forward_pre_hook(choose, with_kwargs=True)


def _attend(self: Any, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
    """Self-attention of fused projections with any number of heads; x: (rows, tokens, width)."""
    bias = None if self.q_bias is None else torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
    projected = nn.functional.linear(x, self.qkv.weight, bias)
    q, k, v = projected.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    added = shared_rel_pos_bias
    if self.relative_position_bias_table is not None:
        own = self._get_rel_pos_bias()
        added = own if added is None else own + added
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    joined: torch.Tensor = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
    return joined


def _empty(module: Any, rule: dict[str, Any]) -> None:
    """Replace the forward of a module that has no unit left by what it then computes: its bias, or nothing."""

    def forward(self: Any, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], 0))
        if rule["consumer"]:
            out = getattr(self, rule["consumer"])(out)
        if rule["norm"]:
            out = getattr(self, rule["norm"])(hidden_states + out)
        return (out, *[None] * (rule["returns"] - 1)) if rule["returns"] else out

    module.forward = types.MethodType(forward, module)


# Merging of tokens: bipartite soft matching with size-weighted attention (ToMe, arXiv 2210.09461, sections 3 and 3.1).
#
# What merged into what rides on the hidden states themselves, as the attribute MERGED of the tensor that goes from
# block to block. Modules keep nothing, so passes of other threads, copies and interrupted passes cannot mix.

MERGED = "optin_merged"


def merging_steps(count: int, tokens: int) -> list[int]:
    """How many merge in each round for `count` of so many tokens to merge: at most half of those left."""
    steps: list[int] = []
    while count:
        steps.append(min(count, tokens // 2))
        count, tokens = count - steps[-1], tokens - steps[-1]
    return steps


def pair_tokens(hidden: torch.Tensor, count: int, special: int) -> torch.Tensor:
    """Where each token goes when `count` of them merge into another: (rows, tokens) of indices below tokens - count.

    Tokens behind the special ones are dealt out to two sets in turn. Each of the first set has a partner in the
    second, the one that it is most like (by the correlation of their hidden states, where the paper takes the cosine of
    keys: as good, and there is no key where a block has lost its heads); the `count` with the likest partners join
    them. All others stay, in their order. Of equals the earlier goes first.

    Args:
        hidden: (rows, tokens, width). special: tokens at the start that take no part.

    At most half of the tokens that may merge do so at once.
    """
    rows, tokens, _ = hidden.shape
    centred = hidden[:, special:].float() - hidden[:, special:].float().mean(dim=-1, keepdim=True)
    unit = nn.functional.normalize(centred, dim=-1)
    likeness, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
    # Ranks by comparing all with all: ONNX knows no stable sort, and an unstable one breaks ties as it likes.
    index = torch.arange(likeness.shape[1], device=hidden.device)
    mine, other = likeness[:, :, None], likeness[:, None, :]
    rank = ((other > mine) | ((other == mine) & (index[None, :] < index[:, None]))).long().sum(dim=-1)
    order = rank.topk(count, dim=-1, largest=False).indices
    staying = torch.ones((rows, tokens), dtype=torch.long, device=hidden.device).scatter(1, special + 2 * order, 0)
    place = staying.cumsum(dim=1) - 1
    joined = place.gather(1, special + 1 + 2 * partner.gather(1, order))
    return place.scatter(1, special + 2 * order, joined)


def merge_tokens(hidden: torch.Tensor, sizes: torch.Tensor, place: torch.Tensor, count: int) -> Any:
    """The mean of all tokens that go to one place, weighted by size.

    Args:
        hidden: (rows, tokens, width). sizes: (rows, tokens), original tokens in each. place: from `pair_tokens`.

    Returns:
        hidden states (rows, tokens - count, width) and sizes (rows, tokens - count).
    """
    rows, tokens, width = hidden.shape
    total = sizes.new_zeros((rows, tokens - count)).scatter_add(1, place, sizes)
    weighted = hidden * (sizes / total.gather(1, place))[:, :, None].to(hidden.dtype)
    mean = hidden.new_zeros((rows, tokens - count, width)).scatter_add(1, place[:, :, None].expand_as(hidden), weighted)
    return mean, total


def spread_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """Each original token's own hidden state again: that of the token which it merged into."""
    merged = getattr(hidden, MERGED, None)
    return hidden if merged is None else hidden.gather(1, merged[1][:, :, None].expand(-1, -1, hidden.shape[-1]))


def merge_between(blocks: list[Any], counts: list[int], special: int, argument: str) -> list[Any]:
    """Let `counts[i]` tokens merge behind block i, and attention behind it weigh tokens by their sizes.

    Behind the last block every original token has a hidden state again, so that whatever comes there (pooling,
    normalisation, heads) sees as many as ever.

    Args:
        blocks: modules whose first argument, and output, are hidden states (rows, tokens, width).
        counts: more than half of the tokens merge in several rounds; at least one stays.
        special: tokens at the start that never merge.
        argument: of a block's forward, what it adds to attention scores.

    Returns:
        the handles that remove this again.
    """
    first = next(number for number, count in enumerate(counts) if count)
    handles = []
    for number, (block, count) in enumerate(zip(blocks, counts, strict=True)):
        if number > first:
            handles.append(block.register_forward_pre_hook(_weigher(block, argument), with_kwargs=True))
        if number >= first:
            last = number == len(blocks) - 1
            handles.append(block.register_forward_hook(_merger(count, special, last), with_kwargs=True))
    return handles


def _hidden(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _weigher(block: nn.Module, argument: str) -> Any:
    signature = inspect.signature(block.forward)

    def weigh(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        hidden = _hidden(args, kwargs)
        if not hasattr(hidden, MERGED):
            raise RuntimeError(
                "something between two blocks replaced the hidden states, and the tokens' sizes are lost"
            )
        sizes = getattr(hidden, MERGED)[0]
        bound = signature.bind(*args, **kwargs)
        bound.arguments[argument] = sizes.log()[:, None, None, :].to(hidden.dtype)
        return bound.args, bound.kwargs

    return weigh


def _merger(count: int, special: int, last: bool) -> Any:
    def merge(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        before = getattr(_hidden(args, kwargs), MERGED, None)
        if before is None:
            ones = torch.ones(hidden.shape[:2], device=hidden.device)
            before = ones, torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        sizes, source = before
        if hidden.shape[1] - special <= count:
            raise ValueError(f"{hidden.shape[1]} tokens, {special} of them special: {count} cannot merge into others")
        for step in merging_steps(count, hidden.shape[1] - special):
            place = pair_tokens(hidden, step, special)
            hidden, sizes = merge_tokens(hidden, sizes, place, step)
            source = place.gather(1, source)
        hidden = hidden.view(hidden.shape)  # another object, so that what the block itself put out carries nothing
        setattr(hidden, MERGED, (sizes, source))
        if last:
            hidden = spread_tokens(hidden)
        return (hidden, *output[1:]) if isinstance(output, (tuple, list)) else hidden

    return merge
