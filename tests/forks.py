"""Processes to kill that start with everything imported: what is killed is the work, and nothing is imported twice."""

import json
import os
import select
import signal
import subprocess
import sys

_SERVER = """
import json, os, sys, traceback
prepared, work = json.loads(sys.argv[1])
exec(prepared, globals())
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.argv[1:] = json.loads(line)
        try:
            exec(work, globals())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Forks:
    """Starts processes that do some work, one after the other, as forks of a process that has run the preparation.

    Args:
        prepared: Program that imports what the work needs; it starts no thread.
        work: Program of each process, which finds its arguments in sys.argv.
        **environment: Variables of the processes beside those of this one.
    """

    def __init__(self, prepared, work, **environment):
        command = [sys.executable, "-c", _SERVER, json.dumps([prepared, work])]
        environment = {**os.environ, **environment}
        self.server = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.kill()
        self.server.communicate()

    def start(self, *arguments):
        """Start a process; the one before it has ended."""
        self.server.stdin.write(json.dumps(arguments).encode() + b"\n")
        return Fork(int(self.server.stdout.readline()), self.server.stdout)


class Fork:
    """A process that was started."""

    def __init__(self, pid, said):
        self.pid, self.said, self.code = pid, said, None

    def poll(self):
        """Return the exit code, or None while it runs."""
        if self.code is None and select.select([self.said], [], [], 0)[0]:
            self.code = int(self.said.readline())
        return self.code

    def kill(self):
        """Kill it without warning; returns its exit code, which is another one if it had come to its end."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self):
        """Wait for its end; returns its exit code."""
        if self.code is None:
            self.code = int(self.said.readline())
        return self.code
