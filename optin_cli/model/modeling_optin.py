"""Give a model of transformers or timm the shapes of a pruned checkpoint, ready for its weights.

This file needs torch alone: `optin prune` ships its text beside the weights, so that a pruned checkpoint loads with
plain transformers and `trust_remote_code=True`, or timm, without optin installed.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.metadata
import inspect
import re
import types
from typing import Any

import torch
from torch import nn


def apply_plan(model: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """Apply the plan of a pruned checkpoint: shapes, attributes, emptied modules. Weights are left to be loaded.

    Args:
        model: a module whose base model lies at `plan["root"]`, or is that base model itself.
        plan: {"root": path, "parameters": {path: shape}, "attributes": {path: int},
            "select": [{"module", "argument", "axis", "per_row", "index", "of"}], "attend": [path],
            "pad": [{"module", "widths", "to"}],
            "empty": [{"module", "consumer", "norm", "remove", "returns"}],
            "merge": None or {"blocks": [path], "counts": [int], "special": int, "argument": str},
            "sizes": [{"attribute": path, "rows": path, "parts": int, "over": path or None}], "bypass": [path],
            "earlier": [the same in the terms of earlier versions of the library], "written_by": [library, version],
            "since": the first version whose terms the others are, if known,
            "needs": [{"path", "since", "value": of what is there, None for any}]}.

    Raises:
        ImportError: the library builds such models of other modules than the plan names, in any of its terms, or they
            compute something else.
    """
    for terms in [*plan.get("earlier", []), plan]:
        placed = _Placed(model, {**terms, "needs": plan.get("needs", [])})
        lacks, unmet = placed.lacks(), placed.unmet()
        if not lacks and not unmet:
            placed.apply()
            return model
        if not lacks:
            break
    raise ImportError(_needs(model, lacks, unmet, plan))


def _needs(model: nn.Module, lacks: str, unmet: list[dict[str, Any]], plan: dict[str, Any]) -> str:
    """What to install for a folder that the installed version of the library cannot load.

    lacks: what today's terms name and the model has not, "" where some terms fit. unmet: what it has to have besides.
    """
    kind = type(model).__name__
    named = lacks or " = ".join(str(unmet[0][key]) for key in ("path", "value") if unmet[0][key] is not None)
    if not plan.get("written_by"):
        return f"This folder needs the version of the library that wrote it: {kind} lacks {named}."
    library, written = plan["written_by"]
    since = [need["since"] for need in unmet] + ([plan.get("since") or written] if lacks else [])
    least, found = max(since, key=_numbers), importlib.metadata.version(library)
    wanted = f">={least}" if _numbers(found) < _numbers(least) else f"=={written}"
    return (
        f"This folder needs {library} {wanted}: {kind} of the installed {library} {found} lacks {named}. "
        f'pip install "{library}{wanted}"'
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


class _Placed:
    """One form of a plan, and the model to which it is applied."""

    def __init__(self, model: nn.Module, plan: dict[str, Any]) -> None:
        root = plan["root"] + "." if plan["root"] else ""
        inside = not root or any(path.startswith(root) for path, _ in model.named_modules())
        self.model, self.prefix = model, "" if inside else root
        self.base = plan["root"] if inside else ""
        self.plan = plan if inside else _of_base(plan, root)

    def locate(self, path: str) -> tuple[Any, str]:
        """The module, or the config of one, that holds what lies at a path, and its name there."""
        *owners, leaf = path.removeprefix(self.prefix).split(".")
        return functools.reduce(getattr, owners, self.model), leaf

    def at(self, path: str) -> Any:
        """The module or attribute at a path."""
        owner, leaf = self.locate(path)
        return getattr(owner, leaf) if leaf else owner

    def has(self, path: str) -> bool:
        """Whether there is anything at a path, None included."""
        try:
            self.at(path)
        except AttributeError:
            return False
        return True

    def lacks(self) -> str:
        """The first thing that the plan names and the model does not have; "" if it has all."""
        plan, merge = self.plan, self.plan.get("merge") or {"blocks": []}
        sizes = [path for size in plan.get("sizes", []) for path in (size["attribute"], size["over"]) if path]
        modules = [rule["module"] for key in ("select", "pad", "empty") for rule in plan.get(key, [])]
        modules += [*plan.get("attend", []), *plan.get("bypass", []), *merge["blocks"]]
        paths: list[str] = [*plan["parameters"], *plan["attributes"], *sizes, *modules]
        for path in paths:
            if not self.has(path):
                return path
        taken = [(rule["module"], rule["argument"]) for rule in plan["select"]]
        taken += [(path, merge["argument"]) for path in merge["blocks"]]
        for path, argument in taken:
            if argument not in inspect.signature(self.at(path).forward).parameters:
                return f"the argument {argument} of {path}"
        return ""

    def unmet(self) -> list[dict[str, Any]]:
        """What the model has to have besides, and does not."""
        needs = self.plan["needs"]
        return [
            need for need in needs if not self.has(need["path"]) or need["value"] not in (None, self.at(need["path"]))
        ]

    def apply(self) -> None:
        """Change the model."""
        plan = self.plan
        for path, shape in plan["parameters"].items():
            _resize(*self.locate(path), shape)
        for path in plan["parameters"]:
            owner = path.rpartition(".")[0]
            if _is_linear(layer := self.at(owner)) and not _linear_sizes(layer)[0]:
                setattr(*self.locate(owner), BiasAlone(layer))
        for path, value in plan["attributes"].items():
            self._set(path, value)
        for size in plan.get("sizes", []):
            number = self.at(size["rows"]).shape[0] // size["parts"]
            setattr(*self.locate(size["attribute"]), number // (self.at(size["over"]) if size["over"] else 1))
        for rule in plan["select"]:
            _select(self.at(rule["module"]), rule)
        for path in plan.get("attend", []):
            attend_by_parts(self.at(path))
        for rule in plan.get("pad", []):
            _pad(self.at(rule["module"]), rule)
        for rule in plan["empty"]:
            _empty(self.at(rule["module"]), rule)
            for path in rule.get("remove", []):
                setattr(*self.locate(path), None)
        for path in plan.get("bypass", []):
            _bypass(self.at(path))
        if rule := plan.get("merge"):
            blocks = [self.at(path) for path in rule["blocks"]]
            base = self.model.get_submodule(self.base)
            merge_between(base, blocks, rule["counts"], rule["special"], rule["argument"])

    def _set(self, path: str, value: Any) -> None:
        """Set an attribute; of a config that others share, in a copy for its owner alone."""
        owner, leaf = self.locate(path)
        if not isinstance(owner, (nn.Module, OwnConfig)):
            owner = OwnConfig(owner)
            setattr(*self.locate(path.rpartition(".")[0]), owner)
        setattr(owner, leaf, value)


def _of_base(plan: dict[str, Any], root: str) -> dict[str, Any]:
    """What of a plan concerns the base model alone, and not the head."""
    return {
        **plan,
        **{key: {p: v for p, v in plan[key].items() if p.startswith(root)} for key in ("parameters", "attributes")},
        **{key: [r for r in plan.get(key, []) if r["module"].startswith(root)] for key in ("select", "empty", "pad")},
        "sizes": [size for size in plan.get("sizes", []) if size["attribute"].startswith(root)],
        **{key: [path for path in plan.get(key, []) if path.startswith(root)] for key in ("attend", "bypass")},
        "needs": [need for need in plan["needs"] if need["path"].startswith(root)],
    }


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
    elif _is_linear(owner) and leaf == "weight":
        owner.nx, owner.nf = shape  # type: ignore[assignment]
    elif isinstance(owner, nn.Conv2d) and leaf == "weight":
        # Groups leave as a whole; a last one is a plain convolution, whose channels may leave one by one.
        owner.groups = max(owner.groups * shape[0] // owner.out_channels, 1) if owner.groups > 1 else 1
        owner.out_channels, owner.in_channels = shape[0], shape[1] * owner.groups
    elif isinstance(owner, nn.BatchNorm2d) and leaf in ("weight", "running_mean"):
        owner.num_features = shape[0]


def _is_linear(module: Any) -> bool:
    """Whether a module is torch's linear layer, or that of transformers with weights (inputs, outputs)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _linear_sizes(linear: Any) -> tuple[int, int]:
    """How many columns a linear layer reads and puts out."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    return linear.nx, linear.nf


class OwnConfig:
    """The config that a model shares with its modules, as one of them sees it: some values are that module's own."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # while being copied
            raise AttributeError(name)
        return getattr(self.shared, name)


class BiasAlone(nn.Module):
    """A linear layer that reads no column any more: its bias in every row.

    No quantizer replaces it by a kernel, which for no columns puts out whatever lies in memory.
    """

    weight: torch.Tensor
    bias: Any

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.outputs = _linear_sizes(linear)[1]
        self.register_parameter("weight", linear.weight)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The bias, or zeros; x: (..., 0)."""
        out = x.new_zeros((*x.shape[:-1], self.outputs))
        return out if self.bias is None else out + self.bias


def _select(module: nn.Module, rule: dict[str, Any]) -> None:
    """Keep only the entries of one argument that belong to the units the module still has."""
    signature = inspect.signature(module.forward)

    def choose(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        bound = signature.bind(*args, **kwargs)
        value = bound.arguments.get(rule["argument"])
        if value is not None and value.shape[rule["axis"]] != 1:
            index = torch.tensor(rule["index"], device=value.device)
            if rule.get("per_row"):
                first = torch.arange(0, value.shape[rule["axis"]], rule["of"], device=value.device)
                index = (first[:, None] + index).flatten()
            bound.arguments[rule["argument"]] = value.index_select(rule["axis"], index)
        return bound.args, bound.kwargs

    module.register_forward_pre_hook(choose, with_kwargs=True)


def _pad(module: Any, rule: dict[str, Any]) -> None:
    """Let a linear layer put out heads of their full width, of which it computes fewer columns."""
    if not hasattr(module, "padded_heads"):
        module.register_forward_hook(_widen)
    module.padded_heads = (tuple(rule["widths"]), rule["to"])


def _widen(module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
    """Pad every head with zeros, which add nothing to products of queries and keys; output: (..., columns)."""
    widths, to = module.padded_heads
    heads = output.shape[-1] // sum(widths)
    parts = torch.split(output, [heads * width for width in widths], dim=-1)
    each = (part.reshape(*part.shape[:-1], heads, width) for part, width in zip(parts, widths, strict=True))
    wide = [nn.functional.pad(p, (0, to - p.shape[-1])).flatten(-2) for p in each]
    return wide[0] if len(wide) == 1 else torch.cat(wide, dim=-1)


def attend_by_parts(module: Any) -> None:
    """Give an attention a forward that runs with any number of heads and calls the module that joins them.

    It may be torch's own, one of a fused projection `qkv`, or one of `q_proj`, `k_proj`, `v_proj` and `out_proj`.
    """
    if isinstance(module, nn.MultiheadAttention):
        forward: Any = _attend_multihead
    else:
        forward = _attend_fused if hasattr(module, "qkv") else _attend_positions
    module.forward = types.MethodType(forward, module)


def _weigh(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, added: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend by projections (rows, tokens, heads x width), queries scaled: (rows, tokens, …), (rows, heads, T, S)."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2)
    weights = (scores if added is None else scores + added).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights


def _attend_multihead(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Torch's multi-head attention of equal widths on batches; masks as in its documentation."""
    del is_causal  # a hint that leaves out no mask
    states = (
        (query, key, value) if self.batch_first else (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
    )
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    q, k, v = map(nn.functional.linear, states, self.in_proj_weight.chunk(3), biases)
    added = None if attn_mask is None else _as_added(attn_mask, q.dtype)
    if added is not None and added.dim() == 3:
        added = added.reshape(q.shape[0], -1, *added.shape[1:])
    if key_padding_mask is not None:
        padding = _as_added(key_padding_mask, q.dtype)[:, None, None, :]
        added = padding if added is None else added + padding
    joined, weights = _weigh(q * self.head_dim**-0.5, k, v, self.num_heads, added)
    out = self.out_proj(joined)
    shown = None if not need_weights else weights.mean(dim=1) if average_attn_weights else weights
    return out if self.batch_first else out.transpose(0, 1), shown


def _as_added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a mask adds to attention scores; true means that there is nothing to attend to."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)


def _attend_positions(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: torch.Tensor | None = None,
    key_value_states: torch.Tensor | None = None,
    key_value_position_embeddings: torch.Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of a decoder of queries: positions join queries and keys; states (tokens, rows, width)."""
    own = key_value_states is None
    source = hidden_states if key_value_states is None else key_value_states
    places = position_embeddings if own else key_value_position_embeddings
    asking = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    asked = source if places is None else source + places
    asking, asked, source = (states.transpose(0, 1) for states in (asking, asked, source))
    added = None if attention_mask is None else attention_mask.reshape(len(asking), -1, *attention_mask.shape[1:])
    projected = self.q_proj(asking) * self.scaling, self.k_proj(asked), self.v_proj(source)
    joined, weights = _weigh(*projected, self.num_heads, added)
    return self.out_proj(joined).transpose(0, 1), weights if output_attentions else None


def _attend_fused(self: Any, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
    """Self-attention of fused projections; x: (rows, tokens, width)."""
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

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        hidden_states = args[0] if args else next(iter(kwargs.values()))
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], 0))
        if rule["consumer"]:
            out = getattr(self, rule["consumer"])(out)
        if rule["norm"]:
            out = getattr(self, rule["norm"])(hidden_states + out)
        return (out, *[None] * (rule["returns"] - 1)) if rule["returns"] else out

    module.forward = types.MethodType(forward, module)


def _bypass(block: Any) -> None:
    """Let a block put out the hidden states that it is given, and compute nothing."""

    def forward(_self: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    block.forward = types.MethodType(forward, block)


# Merging of tokens: bipartite soft matching with size-weighted attention (ToMe, arXiv 2210.09461, sections 3 and 3.1).
#
# What has merged is kept in a `Pass`, which the base model's forward makes and its blocks find in a context variable.
# Modules and tensors keep nothing, so that threads, copies, nested and interrupted passes cannot mix, and whatever
# wraps, clones or casts hidden states between blocks loses nothing.


def merging_steps(count: int, tokens: int) -> list[int]:
    """How many tokens merge in each round until `count` of them have: at most half of those left."""
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


def spread_tokens(hidden: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Copy to each original token the hidden state of the token that it merged into.

    Args:
        hidden: (rows, tokens, width). source: (rows, original tokens), where each is among `tokens`.
    """
    return hidden.gather(1, source[:, :, None].expand(-1, -1, hidden.shape[-1]))


class Pass:
    """What has merged so far in one forward pass of one model.

    block: the one that sizes and source are of: of its input while it runs, of its output afterwards. sizes: (rows,
    tokens), original tokens in each. source: (rows, original tokens), where each now is. outer: the pass during which
    this one began. direct: its blocks were called without the forward of the base model, such as by forward_features.
    """

    def __init__(self, merging: Any, outer: Any, direct: bool) -> None:
        self.merging, self.outer, self.direct = merging, outer, direct
        self.block: Any = None
        self.sizes: Any = None
        self.source: Any = None


PASS: contextvars.ContextVar[Any] = contextvars.ContextVar("optin_pass", default=None)
"""The innermost pass that is running. Every thread and every asyncio task has its own."""


def merged_at(block: nn.Module) -> Any:
    """(sizes, source) of the running pass at a block: of its input while it runs, then of its output. None if apart."""
    now = PASS.get()
    return None if now is None or now.block is not block else (now.sizes, now.source)


class Merging:
    """The hooks that merge tokens in one model. Copying the model copies this, so copies share no passes.

    special: tokens at the start that never merge. argument: of a block's forward, what it adds to attention scores.
    """

    def __init__(self, special: int, argument: str) -> None:
        self.special, self.argument = special, argument

    def running(self) -> Any:
        """The innermost running pass of this model; None if there is none."""
        now = PASS.get()
        while now is not None and now.merging is not self:
            now = now.outer
        return now

    def begin(self, _model: nn.Module, _args: Any) -> None:
        """Before the base model: start a pass."""
        PASS.set(Pass(self, PASS.get(), direct=False))

    def end(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """After the base model, even if it fails: go back to the pass in which this one ran."""
        if (now := self.running()) is not None:
            PASS.set(now.outer)

    def weigh(self, place: int, block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Before a block behind a merge: add log sizes to its attention scores. place: of the argument."""
        hidden = args[0] if args else next(iter(kwargs.values()))
        now = self.running()
        if now is None or now.sizes is None or hidden.shape[1] != now.sizes.shape[1]:
            raise RuntimeError(
                "a block was run apart from its model, or something between two blocks changed the number of tokens: "
                "how many original tokens each one holds is not known"
            )
        now.block = block
        bias = now.sizes.log()[:, None, None, :].to(device=hidden.device, dtype=hidden.dtype)
        if place < len(args):
            return (*args[:place], bias, *args[place + 1 :]), kwargs
        return args, {**kwargs, self.argument: bias}

    def merge(self, count: int, first: bool, last: bool, block: nn.Module, _args: Any, output: Any) -> Any:
        """After a block: merge `count` tokens. first: none have merged yet. last: all part again."""
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        now = self.running()
        if first:
            if now is None or now.sizes is not None:
                now = Pass(self, PASS.get(), direct=True)
                PASS.set(now)
            now.sizes = torch.ones(hidden.shape[:2], device=hidden.device)
            now.source = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        if hidden.shape[1] - self.special <= count:
            raise ValueError(
                f"{hidden.shape[1]} tokens, {self.special} of them special: {count} cannot merge into others"
            )
        sizes, source = now.sizes.to(hidden.device), now.source.to(hidden.device)
        for step in merging_steps(count, hidden.shape[1] - self.special):
            place = pair_tokens(hidden, step, self.special)
            hidden, sizes = merge_tokens(hidden, sizes, place, step)
            source = place.gather(1, source)
        now.block, now.sizes, now.source = block, sizes, source
        if last:
            hidden = spread_tokens(hidden, source)
            now.block = now.sizes = now.source = None
            if now.direct:
                PASS.set(now.outer)
        return (hidden, *output[1:]) if isinstance(output, (tuple, list)) else hidden


def merge_between(model: Any, blocks: list[Any], counts: list[int], special: int, argument: str) -> list[Any]:
    """Merge `counts[i]` tokens behind block i, and weigh tokens by their sizes in the attention of later blocks.

    Behind the last block every original token has a hidden state again, so that what follows (pooling, normalisation,
    heads) sees the whole sequence.

    Args:
        model: the base model, whose forward runs the blocks.
        blocks: modules whose first argument, and output, are hidden states (rows, tokens, width).
        counts: more than half of the tokens merge in several rounds; at least one stays.
        special: tokens at the start that never merge.
        argument: of a block's forward, what it adds to attention scores.

    Returns:
        the handles that remove the hooks.
    """
    merging = Merging(special, argument)
    first, last = next(number for number, count in enumerate(counts) if count), len(blocks) - 1
    handles = [
        model.register_forward_pre_hook(merging.begin),
        model.register_forward_hook(merging.end, always_call=True),
    ]
    for number, block in enumerate(blocks[first:], start=first):
        if number > first:
            place = list(inspect.signature(block.forward).parameters).index(argument)
            weigh = functools.partial(merging.weigh, place)
            handles.append(block.register_forward_pre_hook(weigh, with_kwargs=True))
        merge = functools.partial(merging.merge, counts[number], number == first, number == last)
        handles.append(block.register_forward_hook(merge))
    return handles
