"""Join the processes that torchrun started."""

import contextlib
import os
from collections.abc import Iterator

from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from optin_cli.errors import UsageError
from optin_cli.processes.processes import PATIENCE, Processes, talking


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
        distributed.init_process_group("gloo", store=group, rank=rank, world_size=count, timeout=PATIENCE)
    yield Processes(rank, count, int(os.environ.get("LOCAL_RANK", rank)), PrefixStore("run", store))
    # Not after a failure: it would wait for processes that are gone.
    distributed.destroy_process_group()
