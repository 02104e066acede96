"""A checkpoint in; its model traced by torch.export, with free batch size and length, and inputs to try it with, out.

An exported file takes what the checkpoint's tokenizer gives and its model takes, and gives the outputs that the
model is judged by, each under its own name.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.synthetic_inputs import Inputs, most_tokens, probe_inputs
from optin_cli.data.text.tokenize import INPUTS
from optin_cli.errors import CheckpointError
from optin_cli.exporting.registry import ExportError, Traced
from optin_cli.model.forward import call_model

SHAPES = ((3, 17), (1, 8), (8, 40))
"""Batch sizes and lengths of the probes; the first is what is traced."""


LAST = (4, 24)
"""The last, most padded row of such a batch is a probe of batch size 1 with padding."""


Compute = Callable[[Inputs], Mapping[str, torch.Tensor]]


class Named(nn.Module):
    """Tensors by the given names, as keywords or in order, in; what `compute` makes of them, by name, out."""

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


def input_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What an exported file takes: images, or what the tokenizer gives of what the model takes."""
    if checkpoint.image is not None:
        return (checkpoint.image.input_name,)
    try:
        given = set(checkpoint.tokenizer().model_input_names)
    except CheckpointError:
        given = set()
    taken = inspect.signature(checkpoint.model.forward).parameters
    return tuple(name for name in INPUTS if name in taken and (name in given or name != "token_type_ids"))


def export_probes(checkpoint: Checkpoint, takes: Sequence[str]) -> list[Inputs]:
    """Random inputs of several batch sizes and lengths, padded rows among them; the first is to be traced."""
    most = most_tokens(checkpoint)
    probes = [probe_inputs(checkpoint, most, rows=rows, tokens=tokens) for rows, tokens in SHAPES]
    if checkpoint.image is None:
        rows, tokens = LAST
        last = probe_inputs(checkpoint, most, rows=rows, tokens=tokens)
        probes.append({name: tensor[-1:].clone() for name, tensor in last.items()})
    for probe in probes if "token_type_ids" in takes else []:
        second = torch.zeros_like(probe["input_ids"])
        if int(getattr(checkpoint.config, "type_vocab_size", 0) or 0) > 1:
            second[:, second.shape[1] // 2 :] = 1
        probe["token_type_ids"] = second * probe["attention_mask"]
    return [{name: probe[name] for name in takes} for probe in probes]


def trace(checkpoint: Checkpoint, takes: Sequence[str], example: Inputs) -> Traced:
    """The model (on the CPU) as a program of torch whose batch size, and length of text, are free.

    Raises:
        ExportError: the model's code cannot be traced so.
    """
    gives = tuple(rule.name for rule in checkpoint.structure.outputs)
    text = checkpoint.image is None
    axes = {name: {0: "batch", **({1: "length"} if text else {})} for name in takes}
    free = {"batch": torch.export.Dim("batch"), "length": torch.export.Dim("length", max=most_tokens(checkpoint))}
    shapes = {name: {axis: free[label] for axis, label in of.items()} for name, of in axes.items()}
    model = Outputs(checkpoint.model, takes, gives).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(model, (), kwargs=dict(example), dynamic_shapes=shapes)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(
            f"torch.export cannot trace {checkpoint.name} ({checkpoint.model_class}) with a free batch size"
            f"{' and length' if text else ''}: {' '.join(lines[:2]) or type(error).__name__}",
            hint="The checkpoint itself is as good as before; run it through transformers or timm.",
        ) from error
    return Traced(program, tuple(takes), gives, axes)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Exporters print, log and warn of what concerns their own developers."""
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
