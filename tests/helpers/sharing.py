"""Several processes that share work: forks of this one, and those that torchrun starts."""

import multiprocessing
import sys

import pytest
import torch

from optin_cli.processes.processes import Processes


def in_processes(count, function, folder):
    """What a function of `Processes` returns in each of `count` forks of this process, which must use no GPU yet."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that uses a GPU cannot be forked")

    def work(rank):
        store = torch.distributed.FileStore(str(folder / "store"), count)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
        torch.save(function(Processes(rank, count, rank, store)), folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    forks = [context.Process(target=work, args=(rank,)) for rank in range(count)]
    for fork in forks:
        fork.start()
    for fork in forks:
        fork.join(60)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def torchrun(count, *args):
    """The line that runs a command in `count` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*launcher, "-m", "optin_cli", *map(str, args)]
