"""Time of callables and models. Several are interleaved, so that noise affects all alike.

On a GPU it is that between two events of its stream, so that the host waits for it only once, after all runs.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import torch

from optin_cli.artifacts.base import Workload
from optin_cli.artifacts.evaluation import Latency
from optin_cli.errors import UsageError
from optin_cli.model.forward import call_model
from optin_cli.profiling.devices import describe_device

Call = Callable[[], object]
Clock = Callable[[Sequence[Call], int], list[list[float]]]
"""Runs calls of so many kinds in turn, and returns the seconds of each, by kind."""


def time_on_host(calls: Sequence[Call], kinds: int) -> list[list[float]]:
    """Wall time of calls that return once their work is done."""
    seconds: list[list[float]] = [[] for _ in range(kinds)]
    for number, call in enumerate(calls):
        start = time.perf_counter()
        call()
        seconds[number % kinds].append(time.perf_counter() - start)
    return seconds


def time_on_gpu(calls: Sequence[Call], kinds: int, *, device: torch.device) -> list[list[float]]:
    """Time between events of a GPU's stream before and after each call."""
    marks = []
    with torch.cuda.device(device):
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            call()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
    each = [begin.elapsed_time(end) / 1000 for begin, end in marks]
    return [each[kind::kinds] for kind in range(kinds)]


def measure_latency(
    callables: Sequence[Call],
    *,
    runs: int,
    warmup: int,
    clock: Clock = time_on_host,
) -> list[list[float]]:
    """Seconds of each of `runs` calls, per callable: run 1 of each in turn, then run 2 of each, and so on.

    callables: each returns only once its work is done, or has begun on the device of the clock. warmup: calls of each
    before, untimed (UsageError if below 0, or `runs` below 1).
    """
    if runs < 1 or warmup < 0:
        raise UsageError(f"{runs} timed and {warmup} warm-up runs were asked for; expected at least 1 and 0.")
    for _ in range(warmup):
        for call in callables:
            call()
    return clock([call for _ in range(runs) for call in callables], len(callables))


def forward_latency(
    models: Sequence[torch.nn.Module],
    inputs: Sequence[Mapping[str, torch.Tensor]],
    workload: Workload,
    *,
    runs: int,
    warmup: int,
) -> list[Latency]:
    """Median milliseconds and samples per second of a forward pass of each model.

    models: on the device of `inputs`; put into evaluation mode for the measurement only. inputs: keyword arguments of
    each, of the same content and the shape `workload`. runs, warmup: as for `measure_latency`.
    """
    device = next(iter(inputs[0].values())).device
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        seconds = measure_latency(
            [functools.partial(call_model, m, mine) for m, mine in zip(models, inputs, strict=True)],
            runs=runs,
            warmup=warmup,
            clock=functools.partial(time_on_gpu, device=device) if device.type == "cuda" else time_on_host,
        )
    return [
        Latency(
            **workload.model_dump(),
            runs=runs,
            device=describe_device(device),
            threads=torch.get_num_threads(),
            median_ms=1000 * median(mine),
            samples_per_second=workload.batch_size / median(mine),
        )
        for mine in seconds
    ]


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module's own mode as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
