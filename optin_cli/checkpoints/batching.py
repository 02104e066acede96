"""How samples become batches of a model's inputs."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from optin_cli.data.batch import Batch
from optin_cli.errors import UsageError, did_you_mean
from optin_cli.tasks.schema import Task

Inputs = dict[str, torch.Tensor]
TYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""What models can compute in, by name."""
PROBE_ROWS, PROBE_TOKENS = 4, 24
"""Size of the inputs that certificates compare outputs for."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model lies, and its inputs do.

    The CPU for one that a runtime holds, which has no parameters here, and for one whose weights are in their files.
    """
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None or first.is_meta else first.device


def compute_type(asked: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that a model computes in.

    Args:
        asked: float32 or bfloat16; auto for float32, and bfloat16 where weights are stored so and the device is a GPU.

    Raises UsageError: it is none of these.
    """
    if asked not in TYPES:
        raise UsageError(f"The type {asked!r} is unknown.", hint=did_you_mean(asked, TYPES))
    if asked == "auto":
        asked = "bfloat16" if stored == torch.bfloat16 and device.type == "cuda" else "float32"
    return TYPES[asked]


@dataclass(frozen=True)
class BatchOptions:
    """How samples become batches.

    max_length: most tokens of a text, None for the default. task: names classes where the data does not. labelled:
    whether batches carry the model's class ids. prompt: names that the prompt before each text may have; the model's
    default one where there are none.
    """

    batch_size: int
    max_length: int | None = None
    task: Task | None = None
    labelled: bool = False
    prompt: tuple[str, ...] = ()


def fit_inputs(model: nn.Module, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with only the inputs that the model's forward names, on the model's device."""
    taken, device = inspect.signature(model.forward).parameters, device_of(model)
    return [
        replace(batch, inputs={k: v for k, v in batch.inputs.items() if k in taken}).to(device) for batch in batches
    ]


def seeded(seed: int) -> torch.Generator:
    """A generator that starts from a seed."""
    return torch.Generator().manual_seed(seed)
