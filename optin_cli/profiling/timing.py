"""Wall time of callables and models. Several are interleaved, so that noise affects all alike."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import torch

from optin_cli.artifacts.base import Workload
from optin_cli.artifacts.evaluation import Latency
from optin_cli.errors import UsageError
from optin_cli.model.forward import call_model
from optin_cli.profiling.devices import describe_device


def measure_latency(callables: Sequence[Callable[[], object]], *, runs: int, warmup: int) -> list[list[float]]:
    """Seconds of each of `runs` calls, per callable: run 1 of each in turn, then run 2 of each, and so on.

    callables: each returns only once its work is done. warmup: calls of each before, untimed (UsageError if below 0, or
    `runs` below 1).
    """
    if runs < 1 or warmup < 0:
        raise UsageError(f"{runs} timed and {warmup} warm-up runs were asked for; expected at least 1 and 0.")
    for _ in range(warmup):
        for call in callables:
            call()
    seconds: list[list[float]] = [[] for _ in callables]
    for _ in range(runs):
        for call, mine in zip(callables, seconds, strict=True):
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)
    return seconds


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
            [_forward(m, mine, device) for m, mine in zip(models, inputs, strict=True)], runs=runs, warmup=warmup
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


def _forward(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], device: torch.device) -> Callable[[], None]:
    def call() -> None:
        call_model(model, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


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
