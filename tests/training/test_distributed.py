"""Two processes train what one trains: copies of the model, and one cut into shards by FSDP2."""

import os
import subprocess
import sys

import distributed_steps
import pytest
import torch
from safetensors.torch import load_file

from stages.training.trainer import ADAPTERS, MACHINE_METRICS, OPTIMIZER_STATE

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
# The launcher knows several processes on GPUs alone; the processes themselves know CPUs.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A function: the same steps done here, once for each set of options."""
    done = {}

    def run(options):
        if options not in done:
            done[options] = tmp_path_factory.mktemp("one")
            distributed_steps.main(f"one-{options}", done[options])
        return done[options]

    return run


def launch(mode, out):
    command = [*LAUNCH, distributed_steps.__file__, mode, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("mode", ["copies", "copies-lora", "fsdp2-kl", "fsdp2-lora"])
def test_two_processes_do_the_steps_of_one(mode, one_process, tmp_path):
    """Metrics of every step, weights and optimizer after three steps, and after a fourth from what was saved."""
    launch(mode, tmp_path)
    expected = one_process(mode.partition("-")[2])
    told, alone = (torch.load(folder / "told.pt", weights_only=True) for folder in (tmp_path, expected))
    assert (told["processes"], alone["processes"]) == (2, 1)
    assert len(told["metrics"]) == 4
    for found, one in zip(told["metrics"], alone["metrics"], strict=True):
        assert found.keys() == one.keys()
        steady = one.keys() - set(MACHINE_METRICS)
        assert {n: found[n] for n in steady} == pytest.approx({n: one[n] for n in steady}, rel=1e-4, abs=1e-6)
    assert told["answers"] == alone["answers"]
    for name in ("first", "second"):
        assert_same_files(tmp_path / name, expected / name, "model/model.safetensors")
        other = f"{ADAPTERS}/adapter_model.safetensors" if mode.endswith("lora") else OPTIMIZER_STATE
        assert_same_files(tmp_path / name, expected / name, other)


def assert_same_files(folder, expected, file):
    found, wanted = load_file(folder / file), load_file(expected / file)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{file} {name}")
