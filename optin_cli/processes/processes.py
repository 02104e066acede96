"""What processes that share work do together: divide items, gather results, hand tensors on.

Every process runs the same code on the same inputs, and computes its part of what takes long. What is exchanged goes
over the hosts' memory (gloo), or from one GPU to the next (nccl) where each process has one. Sums are added in a fixed
order.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from optin_cli.errors import ProcessError, UsageError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = datetime.timedelta(days=1)
"""How long a process waits for another's work. That another has died is told by its closed connection, at once."""
FAILED = "failed"
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Explain what torch.distributed raises when a process is gone (ProcessError)."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            "Another process of this run has ended, so the others stop too.",
            hint="optin score goes on from what it kept if the command is repeated with --resume.",
        ) from error


@dataclass(frozen=True)
class Sending:
    """Tensors on their way, which must stay as they are until `wait` returns."""

    tensors: Sequence[torch.Tensor] = ()
    works: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        """Wait until the other process has them (ProcessError if it has ended)."""
        with talking():
            while self.works:  # gloo waits for ever for what it was waited for before
                self.works.pop(0).wait()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is; by default this one alone.

    local: its number on its machine. store: what all of them can reach, also while others are busy. direct: whether
    tensors on GPUs need not go over the host's memory.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    store: Store | None = None
    direct: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def device(self, asked: str | None) -> str | None:
        """The device for this process where `asked`, None for the default, is that of all: each has its own GPU.

        Raises UsageError: there are fewer GPUs than processes on this machine.
        """
        if self.count == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        if self.local >= (gpus := torch.cuda.device_count()):
            raise UsageError(
                f"Each process takes a GPU of its own, but this is number {self.local + 1} on a machine with {gpus}.",
                hint=f"Pass --nproc-per-node {gpus} to torchrun, or --device cpu to the command.",
            )
        return f"cuda:{self.local}"

    def sendable(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor where it can be sent from: as it is, or on the CPU."""
        return tensor if self.direct else tensor.cpu()

    def fails_first(self) -> bool:
        """Whether no other process has failed yet; the first to fail says why."""
        if self.store is None:
            return True
        try:
            return int(self.store.add(FAILED, 1)) == 1
        except RuntimeError:  # the launcher is gone, and there is nobody left to ask
            return True

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], weights: Sequence[float] | None = None
    ) -> list[Result]:
        """The function's results for all items, in order, each computed by one process; results are on the CPU.

        Args:
            weights: how long each item takes, relative to the others; alike where None.
        """
        if self.count == 1:
            return [function(item) for item in items]
        owners = deal(weights or [1.0] * len(items), self.count)
        mine = {number: function(items[number]) for number, owner in enumerate(owners) if owner == self.rank}
        found: list[dict[int, Result]] = [{} for _ in range(self.count)]
        with talking():
            distributed.all_gather_object(found, mine)
        return [found[owner][number] for number, owner in enumerate(owners)]

    def gather(self, found: Sequence[Result]) -> list[Result]:
        """What all have found, where each took every `count`-th item, beginning with that of its rank: in order."""
        if self.count == 1:
            return [*found]
        each: list[Sequence[Result]] = [[] for _ in range(self.count)]
        with talking():
            distributed.all_gather_object(each, found)
        return [each[number % self.count][number // self.count] for number in range(sum(map(len, each)))]

    def share(self, content: Item | None, owner: int = 0) -> Item:
        """What the owner has, on every process."""
        found = [content]
        if self.count > 1:
            with talking():
                distributed.broadcast_object_list(found, src=owner)
        assert found[0] is not None
        return found[0]

    def copy(self, tensors: Sequence[torch.Tensor], owner: int) -> None:
        """Give tensors, where they can be sent from, what they are at the owner, in place."""
        if self.count > 1:
            with talking():
                for tensor in filled(tensors):
                    distributed.broadcast(tensor, src=owner)

    def copied(self, tensors: Sequence[torch.Tensor], owner: int) -> list[torch.Tensor]:
        """The owner's tensors on every process, each on its own device of the type that they have there."""
        if self.count == 1:
            return list(tensors)
        like = self.share([(tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors], owner)
        own = {kind: kind if kind == "cpu" else f"{kind}:{self.local}" for _, _, kind in like}
        here = list(tensors)
        if self.rank != owner:
            here = [torch.empty(shape, dtype=dtype, device=own[kind]) for shape, dtype, kind in like]
        sent = [self.sendable(tensor) for tensor in here]
        self.copy(sent, owner)
        return [tensor.to(empty.device) for tensor, empty in zip(sent, here, strict=True)]

    def send(self, content: Any, tensors: Sequence[torch.Tensor], receiver: int) -> Sending:
        """Begin to send what `torch.save` can write, and tensors where they can be sent from."""
        stream = io.BytesIO()
        torch.save(content, stream)
        written = torch.frombuffer(bytearray(stream.getbuffer()), dtype=torch.uint8)
        sent = [torch.tensor([len(written)]), written, *filled(tensors)]
        with talking():
            return Sending(sent, [distributed.isend(tensor, receiver) for tensor in sent])

    def receive(self, tensors: Sequence[torch.Tensor], sender: int) -> Any:
        """The content that another process sends, with tensors, of the same shapes as these, which are filled."""
        size = torch.zeros(1, dtype=torch.int64)
        with talking():
            distributed.recv(size, sender)
            written = torch.empty(int(size), dtype=torch.uint8)
            for tensor in (written, *filled(tensors)):
                distributed.recv(tensor, sender)
        return torch.load(io.BytesIO(written.numpy().tobytes()), weights_only=True)


ALONE = Processes()
"""One process that shares its work with none."""


def filled(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those that hold anything."""
    return [tensor for tensor in tensors if tensor.numel()]


def deal(weights: Sequence[float], count: int) -> list[int]:
    """Which of `count` processes takes each item, so that all take about as long: heaviest first, to the idlest."""
    loads = [(0.0, process) for process in range(count)]
    owners = [0] * len(weights)
    for number in sorted(range(len(weights)), key=lambda number: (-weights[number], number)):
        load, owner = heapq.heappop(loads)
        owners[number] = owner
        heapq.heappush(loads, (load + weights[number], owner))
    return owners
