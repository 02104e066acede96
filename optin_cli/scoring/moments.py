"""Second moments of a layer's inputs and of the gradients at its output, streamed over calibration batches.

For every consumer y = W x and the sketch's random scalar S of a sample (`sketch.py`): sums over real tokens, or over
positions of a convolution's output, of x x^T, x and g g^T with g = dS/dy. One forward pass and one backward pass per
probe serve all consumers of a model together. The same backward passes give every unit's own squared sensitivity
(dS/dm_u)^2, as the sketch does. Products are in the model's precision, sums in float64; they take 8 (k^2 + 2 d^2) bytes
per consumer with k columns and d outputs.

Removal curves (`curves.py`) take the errors of a layer's positions as independent. They are not, and how much they add
up differs between layers. A curve is therefore scaled by what single units cost as measured, over all positions of a
sample at once, relative to what the curve's own model says of them (the median over the layer's units). Where the
intercept is re-solved, both are of inputs without their mean mu. With x_u the inputs of unit u and sums over positions,

    dS/dm_u = sum g . W_u x_u,   E[(sum g . W_u (x_u - mu_u))^2] = E[(dS/dm_u - (W_u mu_u) . sum g)^2].

So the losses of all layers are in the unit of the sketch, whose importances serve where no curve can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from typing_extensions import Self

from optin_cli.data.batch import Batch
from optin_cli.model.forward import Hooks, hooks
from optin_cli.model.linear import weight_by_outputs
from optin_cli.model.readout import run_hidden
from optin_cli.model.structure import Structure
from optin_cli.model.units import Group
from optin_cli.refit.batch_norm import following_norms
from optin_cli.refit.design_matrix import (
    choose_positions,
    input_columns,
    is_consumer,
    output_rows,
    take,
    why_not,
)
from optin_cli.scoring.baselines import unit_energies
from optin_cli.scoring.curves import curve_importance, lone_losses, removal_curve, typical_ratio
from optin_cli.scoring.products import DimWatch
from optin_cli.scoring.sketch import Objective, probe_scalars

STRIP = 256
"""Columns of a Gram matrix that are computed together; everything left of their block on the diagonal is skipped."""
MIXED = "mixed."
COUNTS = ("tokens", "gradients", "positions", "samples")


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens of all calls of one consumer, which are added to in place.

    square: of x x^T (k, k), above the diagonal only until `mirrored`. total: of x (k,). curvature: of g g^T (d, d),
    over probes too. pull: of p p^T (d, d) over samples and probes, p being the sum of g over a sample's positions.
    mixed: of (dS/dm_u) p, (units, d) by name of each group that the consumer reads. counts: int64 numbers of tokens; of
    gradients, one per token and probe; of positions, the tokens that S depends on before some are drawn from them; and
    of samples.
    """

    square: torch.Tensor
    total: torch.Tensor
    curvature: torch.Tensor
    pull: torch.Tensor
    mixed: Mapping[str, torch.Tensor]
    counts: torch.Tensor

    @classmethod
    def zeros(
        cls, columns: int, outputs: int, units: Mapping[str, int] = {}, device: torch.device | str = "cpu"
    ) -> Self:
        """No tokens yet. units: how many, by group name."""
        total = torch.zeros(columns, dtype=torch.float64, device=device)
        mixed = {name: total.new_zeros(count, outputs) for name, count in units.items()}
        squares = [total.new_zeros(size, size) for size in (columns, outputs, outputs)]
        return cls(squares[0], total, squares[1], squares[2], mixed, torch.zeros(len(COUNTS), dtype=torch.int64))

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Those that have the given tensors, named as by `tensors`."""
        parts = {name: tensor for name, tensor in tensors.items() if not name.startswith(MIXED)}
        mixed = {name.removeprefix(MIXED): tensor for name, tensor in tensors.items() if name.startswith(MIXED)}
        return cls(**parts, mixed=mixed)

    def add_inputs(self, x: torch.Tensor) -> None:
        """Add inputs (n, k)."""
        add_gram(self.square, x)
        self.total.add_(x.sum(dim=0, dtype=torch.float64))
        self.count(tokens=len(x))

    def add_pull(self, pull: torch.Tensor, slopes: Mapping[str, torch.Tensor]) -> None:
        """Take in p (rows, d) and dS/dm_u (rows, units), by group name, of one probe."""
        self.pull.add_(pull.T @ pull)
        for name, slope in slopes.items():
            self.mixed[name].add_(slope.T @ pull)

    def count(self, **more: int) -> None:
        """Raise counts, by their names."""
        for name, number in more.items():
            self.counts[COUNTS.index(name)] += number

    def number(self, name: str) -> int:
        """A count by its name."""
        return int(self.counts[COUNTS.index(name)])

    def input_moment(self, *, centred: bool) -> torch.Tensor:
        """E[x x^T], or with `centred` the covariance: (k, k)."""
        count = max(self.number("tokens"), 1)
        moment = mirrored(self.square).div_(count)
        if centred:
            mean = self.total / count
            moment -= torch.outer(mean, mean)
        return moment

    def output_curvature(self) -> torch.Tensor:
        """E[g g^T] times the positions of a sample, (d, d); without any gradients the identity takes its place.

        If the errors of different tokens are independent, tr(G D H D^T) of a change D of the weights is E[(dS)^2].
        """
        gradients = self.number("gradients")
        mean = mirrored(self.curvature) / gradients if gradients else torch.eye(len(self.curvature)).to(self.curvature)
        return mean * (self.number("positions") / max(self.number("samples"), 1))

    def lone_sensitivity(self, name: str, weight: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
        """E[(dS/dm_u - (W_u mu_u) . p)^2] of a group's units, whose inputs are then without their mean: (units,).

        Args:
            name: of the group. weight: W (d, k). squared: E[(dS/dm_u)^2] (units,).
        """
        tokens = max(self.number("tokens"), 1)
        draws = max(self.number("samples") * self.number("gradients") // tokens, 1)
        shifts = (weight.double() * (self.total / tokens)).reshape(len(weight), len(squared), -1).sum(dim=2).T
        change = ((shifts @ self.pull - 2 * self.mixed[name]) * shifts).sum(dim=1) / draws
        return (squared.to(change) + change).clamp(min=0.0)

    def diagonals(self) -> torch.Tensor:
        """Sums of squares of inputs and of gradients, which are finite if everything is: (k + d,)."""
        return torch.cat([self.square.diagonal(), self.curvature.diagonal()])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is summed, by name."""
        mixed = {f"{MIXED}{name}": tensor for name, tensor in self.mixed.items()}
        sums = {"square": self.square, "total": self.total, "curvature": self.curvature, "pull": self.pull}
        return {**sums, **mixed, "counts": self.counts}


def rows_at(laid: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """The rows (n, columns) of (samples, positions, columns) at the positions that are taken."""
    return laid.flatten(0, 1) if bool(taken.all()) else laid[taken]


def add_gram(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows^T rows to the upper triangle of `total` (k, k), strip by strip; `mirrored` gives the whole."""
    for start in range(0, rows.shape[1], STRIP):
        strip = slice(start, start + STRIP)
        total[strip, start:] += rows[:, strip].T @ rows[:, start:]


def mirrored(total: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which `add_gram` filled the upper triangle."""
    whole = total.triu()
    whole += total.triu(1).T
    return whole


def is_solvable(model: nn.Module, group: Group) -> bool:
    """Whether a group's consumer can be re-solved by least squares, as removal curves take for granted."""
    return why_not(model.get_submodule(group.consumer)) is None


def empty_moments(model: nn.Module, groups: Sequence[Group]) -> dict[str, Moments]:
    """Moments without tokens of the consumers of groups, by path. Groups that share a consumer share its moments."""
    units: dict[str, dict[str, int]] = {}
    for group in groups:
        units.setdefault(group.consumer, {})[group.name] = group.units
    weights = {path: weight_by_outputs(model.get_submodule(path)) for path in units}
    return {
        path: Moments.zeros(weight[0].numel(), len(weight), units[path], weight.device)
        for path, weight in weights.items()
    }


@dataclass
class Call:
    """One call of a consumer.

    x: its input, samples first. read: positions of its output that S depends on, as far as gradients have shown, and
    all real ones where there are no gradients: (rows, positions). chosen: positions that are taken, None for all.
    """

    path: str
    x: torch.Tensor
    read: torch.Tensor
    chosen: torch.Tensor | None


@dataclass
class Pass:
    """What hooks collect in one forward pass and the backward passes through it.

    leaves: tensors that depend on no unit, at which backward passes end. Of the current probe: slopes: dS/dm_u,
    (rows, units) by group; pulls: sums over positions of the gradient at a consumer's output, (rows, d) by path.
    """

    model: nn.Module
    batch: Batch
    moments: Mapping[str, Moments]
    leaves: list[torch.Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    slopes: dict[Group, torch.Tensor] = field(default_factory=dict)
    pulls: dict[str, torch.Tensor] = field(default_factory=dict)

    def watch_units(self, hook: Hooks, group: Group) -> None:
        """Collect slopes of a group's units: dS/dm_u is the sum over tokens and columns of x dS/dx."""

        def enter(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = arguments[0]
            if x.requires_grad:
                seen = x.view_as(x)  # so that other readers of x do not count
            else:
                seen = x.detach().requires_grad_()
                self.leaves.append(seen)
            values = x.detach()

            def collect(gradient: torch.Tensor) -> None:
                product = group.rows_first(values.float() * gradient.float()).movedim(group.axis, -1)
                slope = product.reshape(self.batch.size, -1, group.units, group.unit_width).sum(dim=(1, 3))
                self.slopes[group] = self.slopes.get(group, 0.0) + slope

            seen.register_hook(collect)  # type: ignore[no-untyped-call]
            return (seen, *arguments[1:])

        hook.before(self.model.get_submodule(group.gate), enter)

    def watch_consumers(self, hook: Hooks, groups: Sequence[Group]) -> None:
        """Collect moments of the consumers of groups, those that have any."""
        for group in {group.consumer: group for group in groups if group.consumer in self.moments}.values():
            self.watch_consumer(hook, group)

    def watch_consumer(self, hook: Hooks, group: Group) -> None:
        """Note the inputs of a group's consumer, and add the gradients at its outputs to the moments."""
        moments, axis = self.moments[group.consumer], 1 if group.axis == 1 else -1

        def leave(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            laid = output_rows(group.rows_first(output.detach()), axis, self.batch.size)
            real = self.batch.mask_for(laid)
            chosen = choose_positions(module, self.batch.keys, laid.shape[1])
            call = Call(group.consumer, group.rows_first(arguments[0].detach()), real, chosen)
            self.calls.append(call)
            if not output.requires_grad:
                return
            call.read = torch.zeros_like(real)

            def collect(gradient: torch.Tensor) -> None:
                laid = output_rows(group.rows_first(gradient.detach()), axis, self.batch.size)
                read = (laid != 0).any(dim=-1) & real
                call.read |= read
                pull = laid.sum(dim=1, dtype=torch.float64)
                self.pulls[group.consumer] = self.pulls.get(group.consumer, 0.0) + pull
                add_gram(moments.curvature, rows_at(take(laid, chosen), take(read[..., None], chosen)[..., 0]).float())

            output.register_hook(collect)  # type: ignore[no-untyped-call]

        hook.after(self.model.get_submodule(group.consumer), leave)

    def add_pulls(self) -> None:
        """Add what the current probe has found, once its backward pass is done."""
        for path, pull in self.pulls.items():
            groups = (group for group in self.slopes if group.consumer == path)
            self.moments[path].add_pull(pull, {group.name: self.slopes[group].double() for group in groups})
        self.pulls.clear()
        self.slopes.clear()

    def add_inputs(self, probes: int) -> None:
        """Add the inputs at the positions that are read, once all backward passes are done."""
        for call in self.calls:
            moments, consumer = self.moments[call.path], self.model.get_submodule(call.path)
            assert is_consumer(consumer)
            taken = take(call.read[..., None], call.chosen)[..., 0]
            rows = rows_at(input_columns(consumer, call.x, self.batch.size, call.chosen), taken)
            moments.add_inputs(rows.float())
            moments.count(gradients=probes * len(rows), positions=int(call.read.sum()))
        for path in {call.path for call in self.calls}:
            self.moments[path].count(samples=self.batch.size)


def sensitivity_batch(
    model: nn.Module,
    structure: Structure,
    moments: Mapping[str, Moments],
    batch: Batch,
    objective: Objective,
    *,
    probes: int,
    seed: int,
    dims: DimWatch | None = None,
) -> dict[str, torch.Tensor]:
    """Add a batch to the moments, and measure the squared sensitivities of all units of a structure.

    Args:
        moments: by path of the consumer, from `empty_moments`; groups with other consumers are left out of them.
        probes: backward passes.
        dims: what adds the batch to moments of queries and keys.

    Returns: as of `watch_passes`.
    """

    def passes(leaves: list[torch.Tensor]) -> Iterator[None]:
        for left, scalar in probe_scalars(model, structure, batch, objective, probes=probes, seed=seed):
            torch.autograd.grad(scalar.sum(), leaves, retain_graph=left > 0, allow_unused=True)
            yield

    return watch_passes(Pass(model, batch, moments), structure.groups, passes, probes=probes, dims=dims)


def watch_passes(
    run: Pass,
    groups: Sequence[Group],
    passes: Callable[[list[torch.Tensor]], Iterator[None]],
    *,
    probes: int,
    dims: DimWatch | None = None,
) -> dict[str, torch.Tensor]:
    """Add what a forward pass and the backward passes through it show of a batch to the moments of `run`.

    Args:
        groups: those whose units are watched.
        passes: runs forward, then backward once a probe, yielding after each; it is given the tensors at which backward
            passes may end, a list that the forward pass fills.

    Returns:
        (rows, units) float64 means of (dS/dm_u)^2 over probes, by group name.
    """
    device = run.batch.device  # where sums stay until the end, so that a GPU need not be waited for
    sums = {g: torch.zeros(run.batch.size, g.units, dtype=torch.float64, device=device) for g in groups}
    with torch.enable_grad(), hooks() as hook:
        for group in groups:
            run.watch_units(hook, group)
        run.watch_consumers(hook, groups)
        if dims is not None:
            dims.watch(hook, run.model, run.batch, run.leaves)
        for _ in passes(run.leaves):
            for group, slope in run.slopes.items():
                sums[group] += slope.double().square()
            run.add_pulls()
    with torch.no_grad():
        run.add_inputs(probes)
    run.leaves.clear()  # whose hooks hold the run, and all its inputs until the garbage collector comes by
    found = {group.name: (total / probes).cpu() for group, total in sums.items()}
    return found if dims is None else {**found, **dims.squares(probes)}


@torch.no_grad()
def energy_batch(
    model: nn.Module, structure: Structure, moments: Mapping[str, Moments], batch: Batch
) -> dict[str, torch.Tensor]:
    """Add the inputs of a batch to the moments, and measure what each unit's columns put into its consumer's output.

    Returns:
        (rows, units) float64 sums of squared norms, by group name.
    """
    run = Pass(model, batch, moments)
    with hooks() as hook, unit_energies(model, structure.groups, batch) as energies:
        run.watch_consumers(hook, structure.groups)
        run_hidden(model, structure, batch.inputs)
    run.add_inputs(probes=0)
    return energies


def with_intercept(model: nn.Module, structure: Structure, batch: Batch) -> frozenset[str]:
    """Consumers whose intercept is re-solved too, by path: with a bias, or a batch norm behind them that holds it.

    Args:
        batch: any, to see what the batch norms read.
    """
    biased = {
        g.consumer for g in structure.groups if getattr(model.get_submodule(g.consumer), "bias", None) is not None
    }
    return frozenset(biased | following_norms(model, structure, batch).keys())


@dataclass(frozen=True)
class LayerLoss:
    """The loss of a layer whose units are removed (`curves.py`), by the names there, times a scale."""

    moment: torch.Tensor
    curvature: torch.Tensor
    weight: torch.Tensor
    width: int
    scale: float

    @torch.no_grad()
    def importance(self, damping: float) -> torch.Tensor:
        """Importance of the units in the best order (units,) float32, as `Layer.importance` has it."""
        curve = removal_curve(self.moment, self.curvature, self.weight, width=self.width, damping=damping)
        return curve_importance(replace(curve, losses=curve.losses * self.scale))


@dataclass(frozen=True)
class Layer:
    """What removal curves take of a group's consumer.

    group: its name, units: how many it has. weight: of the consumer (d, k). centred: the intercept is re-solved too.
    """

    group: str
    units: int
    weight: torch.Tensor
    centred: bool

    @classmethod
    def of(cls, model: nn.Module, group: Group, *, centred: bool) -> Self:
        """That of a model."""
        weight = weight_by_outputs(model.get_submodule(group.consumer)).detach().flatten(1).contiguous()
        return cls(group.name, group.units, weight, centred)

    def importance(self, moments: Moments, damping: float, squared: torch.Tensor | None = None) -> torch.Tensor:
        """What the removal of each unit adds to the loss of the layer, re-solved, in the best order: (units,) float32.

        Args:
            damping: see `ridge_inverse`.
            squared: E[(dS/dm_u)^2], of which losses then have the unit; without, errors of positions are independent.
        """
        return self.loss(moments, squared).importance(damping)

    @torch.no_grad()
    def loss(self, moments: Moments, squared: torch.Tensor | None = None) -> LayerLoss:
        """The loss that curves minimise, for which the moments are not needed any more; `squared` as above."""
        moment, curvature = moments.input_moment(centred=self.centred), moments.output_curvature()
        width, scale = self.weight.shape[1] // self.units, 1.0
        if squared is not None:
            own = self.centred
            measured = moments.lone_sensitivity(self.group, self.weight, squared) if own else squared.to(moment)
            scale = typical_ratio(measured, lone_losses(moment, curvature, self.weight, width=width))
        return LayerLoss(moment, curvature, self.weight, width, scale)


def removal_importance(
    model: nn.Module,
    group: Group,
    moments: Moments,
    *,
    centred: bool,
    damping: float,
    squared: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the removal of each unit adds to the loss of its layer (units,), as `Layer.importance` has it."""
    return Layer.of(model, group, centred=centred).importance(moments, damping, squared)
