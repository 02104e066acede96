"""How a GPU computes while numbers are made that artifacts hold."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch.backends import cudnn

NOISE = (".*determinis", "Attempting to run cuBLAS, but there was no current CUDA context")
"""Warnings of torch on what is meant: that an operation has no fixed order, and that a thread is new to the GPU."""


@contextlib.contextmanager
def ordering(wanted: bool) -> Iterator[None]:
    """Whether operations add in a fixed order, where torch can, in this context; the caller's setting returns."""
    ordered = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(ordered, warn_only=warned)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Let a GPU compute the same numbers every time, and convolutions in all digits of float32, in this context.

    By default torch lets cuDNN round the factors of convolutions to TF32, which has 10 bits of fraction: a cut model
    then differs from the masked one by more than a certificate accepts. It also lets threads add in any order. The few
    operations that torch cannot order stay as they are. Without a GPU nothing is changed, and the caller's settings
    return when the context ends. Times are measured outside of it, with the caller's settings.
    """
    if not torch.cuda.is_available():
        yield
        return
    with (
        cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False),
        ordering(True),
        warnings.catch_warnings(),
    ):
        for message in NOISE:
            warnings.filterwarnings("ignore", message)
        yield
