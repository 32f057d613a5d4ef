"""`accelerate launch` with two processes: of one launcher, or of two that take this machine for a node each."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

import stages

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch"]
COMMAND = [*LAUNCHER, "--multi_gpu", "--num_processes", "2"]
COMMAND += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
COPIES = Path(stages.__path__[0]) / "recipes" / "accelerate" / "ddp.yaml"


def launch(*arguments):
    """The finished process; the launcher knows several processes on GPUs alone, the processes themselves know CPUs."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=_environment())


def launch_nodes(*arguments):
    """The same of two launchers, finished: the exit code of the first node that failed, and what both wrote."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = start_nodes(Path(folder), *arguments)
        try:
            codes = [node.wait(400) for node in nodes]
        finally:
            for node in nodes:
                node.kill()
        written = ["".join((Path(folder) / f"{k}.{name}").read_text() for k in (0, 1)) for name in ("out", "err")]
    return subprocess.CompletedProcess(list(arguments), codes[0] or codes[1], *written)


def start_nodes(logs, *arguments):
    """Two launchers that know each other by an address on loopback, one process each; `logs` gets what they write."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*LAUNCHER, "--config_file", COPIES, "--num_machines", 2, "--num_processes", 2]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    return [_start([*command, "--machine_rank", rank, *arguments], logs / str(rank)) for rank in (0, 1)]


def process_of(node, script):
    """The process that a launcher started on the script."""
    (process,) = (child for child in psutil.Process(node.pid).children() if script in child.cmdline())
    return process


def _start(command, log):
    with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
        return subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=_environment())


def _environment():
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
