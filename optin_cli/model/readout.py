"""Outputs over vocabularies, computed for some tokens at a time from the last hidden states.

Logits of a whole batch, samples x tokens x vocabulary, would outgrow everything else: 2 x 512 x 262,144 numbers are
1 GiB. Where each token's logits depend on its last hidden state alone, the base model runs once, and what the library
puts behind it (a linear layer, a soft cap, a scale) then runs on as many tokens as `MOST` logits allow.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from optin_cli.data.batch import Batch
from optin_cli.model.forward import StopForward, call_model, first_tensor, hooks
from optin_cli.model.structure import Structure

MOST = 2**24
"""Logits that are held at once: 64 MiB in float32."""
HIDDEN = "last_hidden_state"


def reads_tokens(structure: Structure) -> bool:
    """Whether the only output that is compared can be computed for some tokens at a time."""
    return len(structure.outputs) == 1 and structure.outputs[0].tokenwise and bool(structure.root)


@dataclass(frozen=True)
class Readout:
    """The last hidden states of one pass, (rows, tokens, width), and what makes logits of them.

    base: the module that the model's forward calls for them, and `returned` what that returned. output: name of the
    logits. classes: how many a token has.
    """

    model: nn.Module
    base: nn.Module
    output: str
    classes: int
    hidden: torch.Tensor
    returned: Any

    @property
    def step(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, MOST // self.classes)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, classes) of hidden states (tokens, width), with gradients if the caller has them enabled."""
        base, whole = self.base, hidden[None]
        # The model's own forward, whose base returns these hidden states without computing.
        found = type(self.returned)(**{HIDDEN: whole}) if isinstance(self.returned, Mapping) else (whole,)
        held = base.__dict__.get("forward")
        base.forward = lambda *_args, **_named: found
        try:
            ids = torch.zeros(whole.shape[:2], dtype=torch.int64, device=hidden.device)
            logits: torch.Tensor = call_model(self.model, {"input_ids": ids})[self.output].squeeze(0)
            return logits
        finally:
            del base.forward
            if held is not None:
                base.forward = held

    def only(self, places: torch.Tensor) -> Self:
        """Of the tokens at the places (rows, tokens) alone, as one row, without whatever else the pass returned."""
        hidden = self.hidden[places][None]
        returned = type(self.returned)(**{HIDDEN: hidden}) if isinstance(self.returned, Mapping) else (hidden,)
        return replace(self, hidden=hidden, returned=returned)

    def parts(self, places: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """Logits (tokens, classes) float32 at the places (rows, tokens) that are true, part by part, row by row.

        places: None for all.
        """
        hidden = self.hidden.flatten(0, 1) if places is None else self.hidden[places]
        for part in torch.split(hidden, self.step):
            yield self.logits(part).float()


def read_out(model: nn.Module, structure: Structure, batch: Batch) -> Readout:
    """Run a model up to its head. Gradients are kept when the caller has them enabled."""
    base, returned = _run_base(model, structure, batch.inputs)
    classes = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    return Readout(model, base, structure.outputs[0].name, classes, first_tensor_of(returned), returned)


def run_hidden(model: nn.Module, structure: Structure, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run a model for its hooks alone, without its head where that holds a distribution for every token."""
    if reads_tokens(structure):
        _run_base(model, structure, inputs)
    else:
        call_model(model, inputs)


def first_tensor_of(returned: Any) -> torch.Tensor:
    """The last hidden states in what a base model returned."""
    return first_tensor(returned[HIDDEN] if isinstance(returned, Mapping) else returned)


def _run_base(model: nn.Module, structure: Structure, inputs: Mapping[str, torch.Tensor]) -> tuple[nn.Module, Any]:
    """Run a model up to its head: the module that gives the last hidden states, and what it returned.

    That is the base model, or its decoder where the model's forward calls that directly, as OPT's does.
    """
    root, decoder = model.get_submodule(structure.root), model.get_decoder()  # type: ignore[operator]
    entered: list[nn.Module] = []
    found: list[tuple[nn.Module, Any]] = []

    def stop(module: nn.Module, _arguments: Any, output: Any) -> None:
        if module is root or not entered:
            found.append((module, output))
            raise StopForward

    with hooks() as hook:
        hook.before(root, lambda module, _arguments: entered.append(module))
        for module in dict.fromkeys((root, decoder)):
            if module is not model:
                hook.after(module, stop)
        with contextlib.suppress(StopForward):
            call_model(model, inputs)
    return found[0]
