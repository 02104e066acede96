"""Verify that a saved folder computes what the model in memory computes.

The folder is loaded in a fresh process by its library with its own modelling code, with optin made unimportable
there: what a user without optin gets.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optin_cli.errors import CertificateError
from optin_cli.files import atomic_file
from optin_cli.model.forward import call_model

RELATIVE_TOLERANCE = 1e-4
"""Largest accepted difference, as a share of the largest output."""
RELOAD = """
import importlib, json, os, sys, time
sys.modules["optin_cli"] = None
import torch
from safetensors.torch import load_file, save_file
request, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
parent = os.getppid()
while not os.path.exists(request):
    if os.getppid() != parent or not os.path.exists(os.path.dirname(request)):
        sys.exit()
    time.sleep(0.02)
folder, loading, inputs, outputs, threads, names = json.load(open(request))
torch.set_num_threads(threads)
exec(loading)
with torch.no_grad():
    result = model.eval()(**load_file(inputs))
result = {"logits": result} if isinstance(result, torch.Tensor) else result
save_file({name: result[name].contiguous() for name in names}, outputs)
"""
Reload = Callable[[Path, str, Mapping[str, torch.Tensor], Sequence[str]], dict[str, torch.Tensor]]


def run_probe(model: nn.Module, inputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Outputs by name, on the CPU, with padding positions of per-token outputs left as they are."""
    device = next(model.parameters()).device
    with torch.no_grad():
        raw = call_model(model, {name: tensor.to(device) for name, tensor in inputs.items()})
    return {name: raw[name].cpu() for name in names}


@contextlib.contextmanager
def reloading(modules: Sequence[str]) -> Iterator[Reload]:
    """Start a fresh process without optin, which imports `modules` while the caller still makes a folder.

    Yields a function of the folder, of code that turns `folder` into `model`, of inputs and of names of outputs, which
    returns those outputs by name, or raises CertificateError with the last lines that the process printed.
    """
    with (
        ThreadPoolExecutor(1) as waiting,  # ends last: the process stops once its folder is gone
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
    ):
        scratch = Path(name).resolve()
        request, feed, result = (scratch / file for file in ("request", "inputs.safetensors", "outputs.safetensors"))
        failure = "The cut checkpoint does not load"
        process = waiting.submit(run_fresh, RELOAD, [str(request), *modules], scratch, failure)

        def reload(
            folder: Path, loading: str, inputs: Mapping[str, torch.Tensor], names: Sequence[str]
        ) -> dict[str, torch.Tensor]:
            save_file(dict(inputs), feed)
            asked = [str(folder.resolve()), loading, str(feed), str(result), torch.get_num_threads(), [*names]]
            with atomic_file(request, force=True) as temporary:
                temporary.write_text(json.dumps(asked), encoding="utf-8")
            process.result()
            return load_file(result)

        yield reload


def run_fresh(code: str, arguments: Sequence[str], scratch: Path, failure: str) -> None:
    """Run Python code in a fresh process.

    Args:
        scratch: a temporary folder, to work in and for the modules that transformers copies.
        failure: what its failing means, in words.

    Raises:
        CertificateError: the process failed; carries the last lines it printed.
    """
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    process = fresh_process(code, arguments, scratch, environment)
    if process.returncode != 0:
        last = "\n".join(process.stderr.strip().splitlines()[-3:])
        raise CertificateError(f"{failure} in a fresh process:\n{last}")


def fresh_process(
    code: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new interpreter and wait for it. The only place that starts one."""
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def largest_difference(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over all outputs; NaN where one is."""
    return float(torch.stack([(mine[name] - theirs[name]).abs().max() for name in mine]).max())


def tolerance_for(outputs: Mapping[str, torch.Tensor]) -> float:
    """Largest accepted difference for outputs of that size."""
    return RELATIVE_TOLERANCE * max(1.0, *(float(o.abs().max()) for o in outputs.values()))


DEFECT = "This is a defect of the architecture description or of optin; please report it."


def require_equal(what: str, difference: float, tolerance: float, hint: str = DEFECT) -> None:
    """Raise CertificateError when outputs differ by more than the tolerance (or are not numbers)."""
    if not difference <= tolerance:
        raise CertificateError(
            f"{what}: outputs differ by {difference:.3g}, more than the tolerance of {tolerance:.3g}. "
            "Nothing was written.",
            hint=hint,
        )
