"""A process that has the model libraries imported and forks a child for every piece of code that it is sent.

A child sees what a fresh process without optin sees, less the seconds that importing the libraries takes. Requests and
answers are lines of JSON on stdin and stdout. Run as a script by `ReloadServer` of `reloading.py`.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import tempfile
import traceback
import warnings

LIBRARIES = ("numpy", "safetensors.numpy", "safetensors.torch", "torch", "transformers", "timm")
LEARNED = ("transformers.", "timm.", "torch.export", "torch._export")
"""What a child imported of these, the server imports for the children that follow."""
ON_DEMAND = re.compile(r"^\s*import (onnxruntime|openvino)\b", re.MULTILINE)


def execute(request, stdout, stderr):
    """Run a request as `python -c` does; returns the exit status."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        for stream, number in ((nothing, 0), (stdout, 1), (stderr, 2)):
            os.dup2(stream.fileno(), number)
    sys.argv = ["-c", *request["arguments"]]
    if request["environment"].get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    use_modules_cache(request["environment"].get("HF_MODULES_CACHE"))
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001
        traceback.print_exception(type(error), error, error.__traceback__.tb_next)
        return 1
    return 0


def use_modules_cache(folder):
    """Set what transformers read from the environment when it was imported."""
    import transformers.dynamic_module_utils

    for module in (transformers.utils, transformers.utils.hub, transformers.dynamic_module_utils):
        module.HF_MODULES_CACHE = folder


def fork(request):
    """Run a request in a child; returns its answer, and the names of the modules that it imported."""
    before = set(sys.modules)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as modules:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = execute(request, stdout, stderr)
                new = [name for name in sys.modules if name not in before and name.startswith(LEARNED)]
                modules.write("\n".join(new).encode())
                modules.flush()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        texts = []
        for stream in (stdout, stderr, modules):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    answer = {"returncode": os.waitstatus_to_exitcode(ended), "stdout": texts[0], "stderr": texts[1]}
    return answer, texts[2].splitlines()


def serve(requests, answers):
    for line in requests:
        request = json.loads(line)
        for name in ON_DEMAND.findall(request["code"]):
            importlib.import_module(name)
        answer, learned = fork(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        for name in learned:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


if __name__ == "__main__":
    sys.modules["optin_cli"] = None
    sys.path[0] = ""  # as `python -c` has it, in place of this script's folder
    warnings.simplefilter("ignore")
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)  # a process of several threads cannot be forked safely
    warnings.resetwarnings()
    serve(sys.stdin, sys.stdout)
