"""How a GPU computes while numbers are made that artifacts hold."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch.backends import cudnn


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
    ordered = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*determinis")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(ordered, warn_only=warned)
