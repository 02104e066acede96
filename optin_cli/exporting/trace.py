"""Trace a checkpoint's model by torch.export, with free batch size and length, and make inputs to try it with.

An exported file takes what the checkpoint's tokenizer gives and its model takes, and gives the outputs that the
model is judged by, each under its own name.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.exporting.registry import ExportError, Traced
from optin_cli.model.forward import call_model

LENGTH = "length"
"""Name of the free axis of texts."""
SHAPES = ((3, 17), (1, 8), (8, 40))
"""Batch sizes and lengths of the probes; the first is what is traced."""
LAST = (4, 24)
"""The last, most padded row of such a batch is a probe of batch size 1 with padding."""
Compute = Callable[[Inputs], Mapping[str, torch.Tensor]]


class Named(nn.Module):
    """Calls `compute` on tensors by name, given as keywords or in the order of `takes`."""

    def __init__(self, takes: Sequence[str], compute: Compute) -> None:
        super().__init__()
        self.takes = tuple(takes)

        def forward(*tensors: torch.Tensor, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            return dict(compute({**dict(zip(self.takes, tensors, strict=False)), **named}))

        # What asks a module for what it takes (torch.export, `fit_inputs`) reads the signature.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in self.takes])
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


class Outputs(Named):
    """A model that gives the named outputs alone."""

    def __init__(self, model: nn.Module, takes: Sequence[str], gives: Sequence[str]) -> None:
        def compute(inputs: Inputs) -> Mapping[str, torch.Tensor]:
            raw = call_model(model, inputs)
            return {name: raw[name] for name in gives}

        super().__init__(takes, compute)
        self.model = model


def export_probes(checkpoint: Checkpoint, takes: Sequence[str]) -> list[Inputs]:
    """Random inputs of several batch sizes and lengths, padded rows among them; the first is to be traced."""
    kind = checkpoint.input
    probes = [kind.probe(kind.most, rows=rows, tokens=tokens) for rows, tokens in SHAPES]
    if LENGTH in kind.axes.values():
        rows, tokens = LAST
        last = kind.probe(kind.most, rows=rows, tokens=tokens)
        probes.append({name: tensor[-1:].clone() for name, tensor in last.items()})
    for probe in probes if "token_type_ids" in takes else []:
        second = torch.zeros_like(probe["input_ids"])
        if int(getattr(checkpoint.blueprint.config, "type_vocab_size", 0) or 0) > 1:
            second[:, second.shape[1] // 2 :] = 1
        probe["token_type_ids"] = second * probe["attention_mask"]
    return [{name: probe[name] for name in takes} for probe in probes]


def trace(checkpoint: Checkpoint, takes: Sequence[str], example: Inputs) -> Traced:
    """The model (on the CPU) as a program of torch with free batch size and length (ExportError if it has none)."""
    gives = tuple(rule.name for rule in checkpoint.structure.outputs)
    axes = dict.fromkeys(takes, checkpoint.input.axes)
    free = {"batch": torch.export.Dim("batch"), LENGTH: torch.export.Dim(LENGTH, max=checkpoint.input.most)}
    shapes = {name: {axis: free[label] for axis, label in of.items()} for name, of in axes.items()}
    model = Outputs(checkpoint.model, takes, gives).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(model, (), kwargs=dict(example), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        length = " and length" if LENGTH in checkpoint.input.axes.values() else ""
        raise ExportError(
            f"torch.export cannot trace {checkpoint.name} ({checkpoint.blueprint.model_class}) with a free batch size"
            f"{length}: {' '.join(lines[:2]) or type(error).__name__}",
            hint="The checkpoint itself is as good as before; run it through transformers or timm.",
        ) from error
    return Traced(tuple(takes), _output_shapes(program, gives), axes, program)


def _output_shapes(program: torch.export.ExportedProgram, gives: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """Rows come first; the program's own symbols show whether a second axis is the sequence or a width."""
    return {
        name: tuple(
            n if isinstance(n, int) else ("batch", LENGTH)[axis] for axis, n in enumerate(node.meta["val"].shape)
        )
        for name, node in zip(gives, [*program.graph.nodes][-1].args[0], strict=True)
    }


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence exporters, which print, log and warn about matters of their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
