"""`accelerate launch` with two processes on this machine."""

import os
import subprocess
import sys

COMMAND = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
COMMAND += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def launch(*arguments):
    """The finished process; the launcher knows several processes on GPUs alone, the processes themselves know CPUs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
