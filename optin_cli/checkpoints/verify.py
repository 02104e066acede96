"""Verify that a saved folder computes what the model in memory computes.

The folder is loaded in a fresh process by its library with its own modelling code, with optin made unimportable
there: what a user without optin gets.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optin_cli.errors import CertificateError
from optin_cli.model.forward import call_model

RELATIVE_TOLERANCE = 1e-4
"""Largest accepted difference, as a share of the largest output."""
RELOAD = """
import sys
sys.modules["optin_cli"] = None
import torch
from safetensors.torch import load_file, save_file
folder, loading, inputs, outputs, threads, names = sys.argv[1:7]
torch.set_num_threads(int(threads))
exec(loading)
with torch.no_grad():
    result = model.eval()(**load_file(inputs))
result = {"logits": result} if isinstance(result, torch.Tensor) else result
save_file({name: result[name].contiguous() for name in names.split(",")}, outputs)
"""


def run_probe(model: nn.Module, inputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Outputs by name, on the CPU, with padding positions of per-token outputs left as they are."""
    device = next(model.parameters()).device
    with torch.no_grad():
        raw = call_model(model, {name: tensor.to(device) for name, tensor in inputs.items()})
    return {name: raw[name].cpu() for name in names}


def run_probe_fresh(
    folder: Path, loading: str, inputs: Mapping[str, torch.Tensor], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Run the probe in a fresh process, where `loading` turns `folder` into `model` (CertificateError if it fails)."""
    with tempfile.TemporaryDirectory() as scratch:
        feed, result = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file(dict(inputs), feed)
        arguments = [str(folder.resolve()), loading, str(feed), str(result), str(torch.get_num_threads())]
        run_fresh(RELOAD, [*arguments, ",".join(names)], Path(scratch), "The cut checkpoint does not load")
        return load_file(result)


def run_fresh(code: str, arguments: Sequence[str], scratch: Path, failure: str) -> None:
    """Run Python code in a fresh process (CertificateError, with the last lines it printed, if that fails).

    scratch: a temporary folder, to work in and for the modules that transformers copies. failure: what failing means.
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
