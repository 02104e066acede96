"""In place of fresh processes: forks of one process that has imported the model libraries, never optin."""

import json
import subprocess
import sys
import threading
from pathlib import Path

from helpers.running import environment

SERVER = Path(__file__).with_name("reload_server.py")


class ReloadServer:
    """Runs code as `optin_cli.checkpoints.fresh.fresh_process` does. Its process starts at the first request."""

    def __init__(self):
        self.process = None
        self.turn = threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def python(self, code, *args, cwd, **extra):
        """Run code as `python` of `running.py` does, where optin cannot be imported."""
        return self.run(code, [*map(str, args)], cwd, environment(**extra))

    def run(self, code, arguments, cwd, environment):
        request = {"code": code, "arguments": [*arguments], "cwd": str(cwd), "environment": dict(environment)}
        with self.turn:  # a process that nobody waits for may not have ended yet
            if self.process is None:
                line = [sys.executable, str(SERVER)]
                self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        assert answer, f"the reload server ended with status {self.process.wait()}"
        found = json.loads(answer)
        return subprocess.CompletedProcess(arguments, found["returncode"], found["stdout"], found["stderr"])
