"""Names of devices, for records of what was measured on them."""

import platform
from pathlib import Path

import torch

from optin_cli.artifacts.base import device_type

CPU_INFO = Path("/proc/cpuinfo")


def describe_device(device: torch.device) -> str:
    """cpu or cuda, and the processor's name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({_cpu_name()})" if device.type == "cpu" else device.type


def _cpu_name() -> str:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())


def other_device(device: str, threads: int) -> str | None:
    """How what is here differs from a device and thread count that were recorded; None where it does not."""
    kind = device_type(device)
    if kind == "cuda":
        here = describe_device(torch.device("cuda")) if torch.cuda.is_available() else "no accelerator"
    else:
        here = describe_device(torch.device("cpu"))
    if here != device:
        return f"measured on {device}; here is {here}"
    if kind == "cpu" and threads != torch.get_num_threads():
        return f"measured with {threads} thread(s); here {torch.get_num_threads()} would be used"
    return None
