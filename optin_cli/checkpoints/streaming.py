"""Models larger than memory: weights stay in their files, and parts of the model get theirs only while they run.

The files are memory-mapped, so that what is not open costs address space alone. A part is a block, by its path, or
everything outside the blocks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from optin_cli.checkpoints.weights import State
from optin_cli.model.structure import Structure

REST = ""
"""The part that lies outside all blocks: embeddings, last norm, head."""
SHARE = 0.5
"""Share of the free memory that weights may take before they are streamed."""
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Streaming:
    """A model on the meta device, and its weights by the names of its state dict, memory-mapped.

    blocks: their paths, in order. device: where open parts lie. dtype: the floating type that they compute in. Buffers
    that no file holds, such as rotary frequencies, always have their values there.
    """

    model: nn.Module
    stored: Mapping[str, torch.Tensor]
    blocks: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        model: nn.Module,
        stored: Mapping[str, torch.Tensor],
        structure: Structure,
        target: tuple[torch.device, torch.dtype],
    ) -> Streaming:
        """With the blocks that a structure names. target: device and type of open parts."""
        device, dtype = target
        for module in model.modules():
            for name, tensor in module._buffers.items():
                if tensor is not None and not tensor.is_meta:
                    module._buffers[name] = tensor.to(device)
        return cls(model, stored, tuple(block.path for block in structure.blocks), device, dtype)

    @contextlib.contextmanager
    def opened(self, *parts: str) -> Iterator[None]:
        """Give parts of the model their weights, copies that may be changed, while the context lasts.

        Then whatever tensors they have are meta tensors again, with the shapes that they got meanwhile. A part that is
        open already stays open.
        """
        closed = [part for part in parts if any(tensor.is_meta for _, _, tensor in self._tensors(part))]
        try:
            for part in closed:
                self._fill(part)
            yield
        finally:
            for part in closed:
                self._empty(part)
            if closed:
                return_memory()

    def owns(self, part: str, name: str) -> bool:
        """Whether a tensor of the model belongs to a part."""
        if part != REST:
            return name.startswith(f"{part}.")
        return not any(self.owns(block, name) for block in self.blocks)

    def state(self, part: str) -> State:
        """The stored tensors of a part by the model's names, not copied, in the types of the files."""
        return {name: self.stored[name] for name in self.stored if self.owns(part, name)}

    def _tensors(self, part: str) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
        """(owner, name in it, tensor) of all that a file could hold, of a part; tied ones as often as they occur."""
        for path, module in self.model.named_modules():
            own = [name for name, tensor in module._parameters.items() if tensor is not None]
            own += [
                name
                for name, tensor in module._buffers.items()
                if tensor is not None and name not in module._non_persistent_buffers_set
            ]
            for name in own:
                if self.owns(part, f"{path}.{name}".lstrip(".")):
                    yield module, name, getattr(module, name)

    def _fill(self, part: str) -> None:
        made: dict[int, torch.Tensor] = {}  # tied weights stay one
        for name, tensor in self.state(part).items():
            path, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(path)
            blank = getattr(owner, leaf)
            if id(blank) not in made:
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                made[id(blank)] = _like(blank, tensor.to(self.device, dtype, copy=True))
            _put(owner, leaf, made[id(blank)])

    def _empty(self, part: str) -> None:
        made: dict[int, torch.Tensor] = {}
        for owner, name, tensor in list(self._tensors(part)):
            if id(tensor) not in made:
                made[id(tensor)] = _like(tensor, tensor.detach().to("meta"))
            _put(owner, name, made[id(tensor)])


def _like(known: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A parameter or a buffer, as the known tensor is."""
    return nn.Parameter(values, requires_grad=False) if isinstance(known, nn.Parameter) else values


def _put(owner: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter or buffer, whatever device and shape it has."""
    held: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
    held[name] = tensor


class WeightsOnMeta(TorchFunctionMode):
    """While it lasts, layers are built with parameters on the meta device; what is computed beside has its values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Let the function that layers make their parameters with take no memory."""
        del types
        named = dict(kwargs or {})
        if func is torch.empty:
            named["device"] = "meta"
        return func(*args, **named)


def strip_weights(model: nn.Module) -> None:
    """Move all that a state dict holds to the meta device, without gradients; tied weights stay one."""
    held = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and id(tensor) in held:
                if id(tensor) not in made:
                    made[id(tensor)] = _like(tensor, tensor.detach().to("meta"))
                _put(module, name, made[id(tensor)])


def free_memory(device: torch.device) -> int:
    """Bytes that a device has left; of the CPU's, what processes can take without swapping, as the system says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration, ValueError):
        line = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def exceed_memory(tensors: Iterable[torch.Tensor], dtype: torch.dtype, free: int) -> bool:
    """Whether tensors, with numbers of that type, take more than half of so many bytes."""
    return sum(tensor.numel() for tensor in tensors) * dtype.itemsize > SHARE * free


def return_memory() -> None:
    """Return freed memory to the system where the C library can.

    What it keeps for itself between tensors of different sizes would grow from block to block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
