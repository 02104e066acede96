"""A saved folder and the model it was saved from in; the largest difference of their outputs out.

The folder is loaded in a fresh process by plain transformers with its own modelling code, with optin made
unimportable there: what a user without optin gets.
"""

from __future__ import annotations

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
from optin_cli.observe import call_model

PROBE_ROWS, PROBE_TOKENS = 4, 24
RELATIVE_TOLERANCE = 1e-4
"""Largest accepted difference, as a share of the largest output."""
LOADER = "AutoModel.from_pretrained(trust_remote_code=True) in a fresh process without optin"

RELOAD = """
import sys
sys.modules["optin_cli"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
folder, auto_class, inputs, outputs, threads, names = sys.argv[1:7]
torch.set_num_threads(int(threads))
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    result = model(**load_file(inputs))
save_file({name: result[name].contiguous() for name in names.split(",")}, outputs)
"""


def probe_inputs(vocab_size: int, max_length: int, pad: int | None) -> dict[str, torch.Tensor]:
    """Fixed random token ids, (rows, tokens), the later rows padded by ever more positions."""
    tokens = min(PROBE_TOKENS, max_length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, vocab_size - 1), vocab_size, (PROBE_ROWS, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(PROBE_ROWS):
        mask[row, tokens - row * tokens // (2 * PROBE_ROWS) :] = 0
    ids = torch.where(mask.bool(), ids, pad or 0)
    return {"input_ids": ids, "attention_mask": mask}


def run_probe(model: nn.Module, inputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Outputs by name, on the CPU, with padding positions of per-token outputs left as they are."""
    device = next(model.parameters()).device
    with torch.no_grad():
        raw = call_model(model, {name: tensor.to(device) for name, tensor in inputs.items()})
    return {name: raw[name].cpu() for name in names}


def run_probe_fresh(
    folder: Path, auto_class: str, inputs: Mapping[str, torch.Tensor], names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Load `folder` in a fresh process without optin and run the probe there.

    Raises:
        CertificateError: the process failed; carries the last lines it printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        feed, result = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file(dict(inputs), feed)
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(scratch) / "modules"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        arguments = [str(folder.resolve()), auto_class, str(feed), str(result), str(torch.get_num_threads())]
        process = subprocess.run(
            [sys.executable, "-c", RELOAD, *arguments, ",".join(names)],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            last = "\n".join(process.stderr.strip().splitlines()[-3:])
            raise CertificateError(f"The cut checkpoint does not load in a fresh process:\n{last}")
        return load_file(result)


def largest_difference(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over all outputs."""
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def tolerance_for(outputs: Mapping[str, torch.Tensor]) -> float:
    """Largest accepted difference for outputs of that size."""
    return RELATIVE_TOLERANCE * max(1.0, *(float(o.abs().max()) for o in outputs.values()))


def require_equal(what: str, difference: float, tolerance: float) -> None:
    """Raise CertificateError when outputs differ by more than the tolerance (or are not numbers)."""
    if not difference <= tolerance:
        raise CertificateError(
            f"{what}: outputs differ by {difference:.3g}, more than the tolerance of {tolerance:.3g}. "
            "Nothing was written.",
            hint="This is a defect of the architecture description or of optin; please report it.",
        )
