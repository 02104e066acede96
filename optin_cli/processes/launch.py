"""Join the processes that torchrun started."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from optin_cli.errors import UsageError
from optin_cli.processes.processes import PATIENCE, Processes, talking

GLOO, BOTH = "gloo", "cpu:gloo,cuda:nccl"
"""What tensors travel by, by device where it is not one for all."""


def backend(local_count: int) -> str:
    """Gloo, and nccl for tensors on GPUs where each process of this machine can have a GPU of its own."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and distributed.is_nccl_available() else 0
    return BOTH if 0 < local_count <= gpus else GLOO


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run, as torchrun's environment variables describe them, while the context lasts.

    Raises:
        UsageError: this torch cannot talk between processes.
    """
    if not distributed.is_available() or not distributed.is_gloo_available():
        raise UsageError("This build of torch has no gloo, so that processes cannot share work.")
    with talking():
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        group = PrefixStore("group", store)
        chosen = backend(int(os.environ.get("LOCAL_WORLD_SIZE", count)))
        distributed.init_process_group(chosen, store=group, rank=rank, world_size=count, timeout=PATIENCE)
    local = int(os.environ.get("LOCAL_RANK", rank))
    yield Processes(rank, count, local, PrefixStore("run", store), direct=chosen == BOTH)
    # Not after a failure: it would wait for processes that are gone.
    distributed.destroy_process_group()
