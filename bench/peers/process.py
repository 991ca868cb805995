"""An engine in a process of its own, asked line by line."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Threads of OpenMP that wait must not take a core from whoever is measured next.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
HERE = Path(__file__).parent


class Refused(Exception):
    """The engine's own error, or its end."""


class Process:
    def __init__(self, name, command, log):
        """`log`: the file for what it says beside its answers."""
        self.name = name
        self.child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | QUIET,
        )

    @classmethod
    def ours(cls, program, folder, queries, log):
        return cls("ours", [program, "serve", folder, f"queries={queries}"], log)

    @classmethod
    def peer(cls, name, folder, queries, log):
        return cls(name, [sys.executable, HERE / "serve.py", name, folder, queries], log)

    def ask(self, command, **options):
        words = [command, *(f"{name}={value}" for name, value in options.items())]
        try:
            self.child.stdin.write(" ".join(words) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Refused(f"{self.name} ended at '{' '.join(words)}'")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(f"{self.name}: {answer['error']}")
        return answer

    def end(self):
        try:
            self.child.stdin.close()
        except BrokenPipeError:
            pass  # It has ended already.
        self.child.wait()
