"""Build models no larger than their weights allow: configs come from strangers, and a number can ask for much."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from optin_cli.artifacts.tensor_files import read_tensor_header
from optin_cli.errors import CheckpointError

MORE_NUMBERS, MORE_TENSORS = 32, 4
"""How many times as large as its stored weights a model may be: one that was cut is built whole before it is cut."""
SPARE_NUMBERS, SPARE_TENSORS = 1 << 25, 1000
"""What any model may have."""
LEAST_BYTES = 64
"""A stored tensor takes no fewer, with its name and shape."""
FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand})


class _Sizes(TorchFunctionMode):
    """Refuses single tensors of more than `most` numbers before memory is spent on them."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__()
        self.most, self.name = most, name

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in FACTORIES:
            sizes = args[0] if args and isinstance(args[0], Sequence) else args
            numbers = [size for size in sizes if isinstance(size, int)]
            if math.prod(numbers) > self.most:
                raise _too_large(self.name, f"a tensor of {math.prod(numbers):,} numbers")
        return func(*args, **(kwargs or {}))


def _too_large(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The config of {name} asks for {what}, far more than its weights.",
        hint="Pass the config that belongs to these weights.",
    )


@contextlib.contextmanager
def no_larger_than(numbers: int, tensors: int, name: str) -> Iterator[None]:
    """Refuse models that are built in this context if they are far larger than stored weights (CheckpointError).

    Args:
        numbers, tensors: of the stored weights, at most. name: of the checkpoint, for messages.
    """
    most_numbers = MORE_NUMBERS * numbers + SPARE_NUMBERS
    most_tensors = MORE_TENSORS * tensors + SPARE_TENSORS
    seen = [0, 0]

    def count(_module: Any, _name: str, parameter: Any) -> None:
        if parameter is not None:
            seen[0], seen[1] = seen[0] + 1, seen[1] + parameter.numel()
            if seen[0] > most_tensors:
                raise _too_large(name, f"more than {most_tensors:,} tensors")
            if seen[1] > most_numbers:
                raise _too_large(name, f"more than {most_numbers:,} weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        with _Sizes(most_numbers, name):
            yield
    finally:
        handle.remove()


def sizes_of(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """How many numbers and tensors there are of stored weights."""
    return sum(tensor.numel() for tensor in tensors.values()), len(tensors)


def stored_in(folder: Path) -> tuple[int, int]:
    """How many numbers and tensors the files of a folder may hold at most."""
    files = [path for path in folder.iterdir() if path.is_file()]
    tensors = 0
    for path in files:
        header = read_tensor_header(path) if path.suffix == ".safetensors" else None
        tensors += path.stat().st_size // LEAST_BYTES if header is None else len(header)
    return sum(path.stat().st_size for path in files), tensors
