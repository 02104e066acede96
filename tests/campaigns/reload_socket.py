"""The reload server of the tests behind a socket, so that forks of one process can share it.

Run as a script with the socket's path. A client that is killed costs the server nothing but the answer.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import reload_server

LEARNED = ("transformers.", "timm", "onnxruntime", "openvino")
"""What requests name of these is imported before the fork."""
PATIENCE = 600
"""Seconds that a client waits for an answer."""


def ask(place, code, arguments, cwd, environment):
    """Run code as `optin_cli.checkpoints.fresh.fresh_process` does, by the server at a socket."""
    request = {"code": code, "arguments": [*arguments], "cwd": str(cwd), "environment": dict(environment)}
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(place))
        with client.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            found = json.loads(stream.readline())
    return subprocess.CompletedProcess(arguments, found["returncode"], found["stdout"], found["stderr"])


@contextlib.contextmanager
def serving(place):
    """A server at a socket, in a process of its own, while the context lasts."""
    process = subprocess.Popen([sys.executable, __file__, str(place)])
    try:
        while not Path(place).exists():
            assert process.poll() is None, "the reload server ended"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def serve(client):
    """Serve one client in a process of its own, which ends with its children when the client is gone."""
    stream = client.makefile("rw", encoding="utf-8")
    request = json.loads(stream.readline())
    for name in (*reload_server.ON_DEMAND.findall(request["code"]), *request["arguments"]):
        if name.startswith(LEARNED):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    if os.fork() > 0:
        return
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def follow():
        if not client.recv(1):
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    answer, _ = reload_server.fork(request)
    stream.write(json.dumps(answer) + "\n")
    stream.flush()
    os._exit(0)


def main(place):
    sys.modules["optin_cli"] = None
    sys.path[0] = ""  # as `python -c` has it, in place of this script's folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    for library in reload_server.LIBRARIES:
        importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)  # a process of several threads cannot be forked safely
    warnings.resetwarnings()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{place}.tmp")
        server.listen(16)
        os.rename(f"{place}.tmp", place)  # noqa: PTH104
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError, ValueError):
                serve(client)


if __name__ == "__main__":
    main(sys.argv[1])
