"""Processes forked from a server that has imported everything: to import it anew takes seconds of computing each."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest.mock import patch

from df_cli.main import main

GRACE_S = 2
"""That the others have to end by themselves where one has failed."""


@cache
def server():
    """What processes are forked from; it looks for modules where its environment says, not where this process does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["everything"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def df(*arguments, cwd=None):
    """`df` with these arguments, in this folder, finished."""
    return run(df_here, *arguments, cwd=cwd)


def df_pair(*arguments):
    """`df` in two processes, finished, with what both wrote."""
    return pair(df_here, *arguments)


def df_of_nodes(*arguments):
    """`df` in two processes that take this machine for a node each."""
    return pair(df_here, *arguments, nodes=2)


def pair(function, *arguments, nodes=1):
    """A function in two processes that know of each other as by `accelerate launch` on so many nodes; one that fails
    ends both."""
    local = 2 // nodes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(local), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no"}
    return run(
        function, *arguments, environments=[common | {"RANK": str(r), "LOCAL_RANK": str(r % local)} for r in (0, 1)]
    )


def run(function, *arguments, cwd=None, environments=({},), timeout=240):
    """A process of the function for each environment, all finished; every argument arrives as a string."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        started = [
            server().Process(
                target=_begin, args=(function, words, streams, cwd or Path.cwd(), os.environ | environment)
            )
            for environment in environments
        ]
        for process in started:
            process.start()
        code = _joined(started, timeout)
        return subprocess.CompletedProcess(words, code, *(stream.read_text() for stream in streams))


def _begin(function, words, streams, folder, environment):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    function(*words)


def df_here(*arguments):
    """`df` in this process, to its end."""
    sys.argv = ["df", *arguments]
    main()


def _joined(processes, timeout):
    """The exit code of the first that failed, which ends the others; 0 where none did."""
    deadline, code = time.monotonic() + timeout, 0
    while alive := [process for process in processes if process.exitcode is None]:
        if not connection.wait([process.sentinel for process in alive], deadline - time.monotonic()):
            for process in alive:
                process.kill()
            assert code, f"not done after {timeout} s"
            deadline = time.monotonic() + timeout
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + GRACE_S
    return code or next((process.exitcode for process in processes if process.exitcode), 0)
