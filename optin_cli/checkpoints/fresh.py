"""Fresh processes without optin, in which a saved folder is loaded as a user without optin loads it.

The folder's library loads it with its own modelling code; optin is made unimportable. Most of the time of such a
process goes into importing the library, so it starts early. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.checkpoints.libraries.registry import CONFIG
from optin_cli.checkpoints.sentences import MODULES, PACKAGE, encoder_folder
from optin_cli.errors import CertificateError, CheckpointError
from optin_cli.files import atomic_file, load_json

if TYPE_CHECKING:
    import torch

RELOAD = """
import contextlib, importlib, json, os, sys, time
sys.modules["optin_cli"] = None
import torch
from safetensors.torch import load_file, save_file
request, *modules = sys.argv[1:]
for module in modules:
    with contextlib.suppress(Exception):  # only a guess, made to save time
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
Reload = Callable[[Path, str, Mapping[str, "torch.Tensor"], Sequence[str]], dict[str, "torch.Tensor"]]


def modules_of(source: str | Path) -> list[str]:
    """Modules that loading a checkpoint folder will import, as its config has them; a wrong guess costs only time."""
    with contextlib.suppress(OSError, ValueError, TypeError, CheckpointError):
        folder = Path(source)
        raw = load_json(encoder_folder(folder) / CONFIG, foreign=True)
        name = str(raw["model_type"]).replace("-", "_") if "model_type" in raw else None
        more = [PACKAGE] if (folder / MODULES).is_file() else []
        return ["timm"] if name is None else ["transformers", f"transformers.models.{name}.modeling_{name}", *more]
    return []


@contextlib.contextmanager
def reloading(modules: Sequence[str]) -> Iterator[Reload]:
    """Start a fresh process without optin, which imports `modules` while the caller still makes a folder.

    Yields a function of the folder, of code that turns `folder` into `model`, of inputs and of names of outputs, which
    returns those outputs by name, or raises CertificateError with the last lines that the process printed.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        request, feed, result = (scratch / file for file in ("request", "inputs.safetensors", "outputs.safetensors"))
        failure = "The cut checkpoint does not load"
        process: Future[None] = Future()

        def run() -> None:
            try:
                run_fresh(RELOAD, [str(request), *modules], scratch, failure)
                process.set_result(None)
            except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
                process.set_exception(error)

        # A daemon, since nobody waits for it after a failure: the process ends by itself once its folder is gone.
        threading.Thread(target=run, daemon=True).start()

        def reload(
            folder: Path, loading: str, inputs: Mapping[str, torch.Tensor], names: Sequence[str]
        ) -> dict[str, torch.Tensor]:
            import torch
            from safetensors.torch import load_file, save_file

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
