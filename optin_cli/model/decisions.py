"""Let two models decide alike what each decides by comparing numbers, so that what else they compute can be compared.

Where a number falls next to its threshold, rounding decides, and what follows differs by more than rounding.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from optin_cli.model.forward import hooks
from optin_cli.model.structure import Structure


@contextlib.contextmanager
def noting_decisions(model: nn.Module, structure: Structure) -> Iterator[list[torch.Tensor]]:
    """Collect what the modules of `structure.decisions` decide, in the order of their calls."""
    found: list[torch.Tensor] = []
    with hooks() as hook:
        for rule in structure.decisions:

            def note(_module: nn.Module, _inputs: Any, output: Any, item: int = rule.item) -> None:
                found.append(output[item])

            hook.after(model.get_submodule(rule.module), note)
        yield found


@contextlib.contextmanager
def repeating_decisions(model: nn.Module, structure: Structure, decided: list[torch.Tensor]) -> Iterator[None]:
    """Let the modules decide in one forward pass what others decided in another."""
    left = iter(decided)
    with hooks() as hook:
        for rule in structure.decisions:

            def repeat(_module: nn.Module, _inputs: Any, output: Any, item: int = rule.item) -> Any:
                return (*output[:item], next(left), *output[item + 1 :])

            hook.after(model.get_submodule(rule.module), repeat)
        yield
