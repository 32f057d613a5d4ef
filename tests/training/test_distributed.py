"""Two processes train what one trains: copies of the model, and one cut into shards by FSDP2 or ZeRO-3."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distributed_steps
import stages
from forked import pair
from stages.training.critic import CRITIC
from stages.training.trainer import ADAPTERS, MACHINE_METRICS, OPTIMIZER_STATE

ZERO3 = Path(stages.__path__[0]) / "recipes" / "accelerate" / "zero3.yaml"
NEEDS_DEEPSPEED = [
    pytest.mark.skipif(
        find_spec("deepspeed") is None,
        reason="deepspeed is not installed: it compiles for minutes at first use, so the dev extra leaves it out",
    ),
    pytest.mark.timeout(900),
]


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


def launch_deepspeed(*arguments):
    """As the launch configuration for ZeRO-3 has it, but for two processes on this machine's CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ZERO3, "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [*map(str, command), "--main_process_port", "0", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)


@pytest.mark.parametrize(
    "mode",
    [
        "fsdp2-kl",
        *(
            pytest.param(mode, marks=pytest.mark.slow)
            for mode in ("copies", "copies-lora", "copies-dpo", "copies-ppo", "fsdp2-lora", "fsdp2-ppo")
        ),
        *(pytest.param(mode, marks=NEEDS_DEEPSPEED) for mode in ("zero3", "zero3-kl", "zero3-lora", "zero3-ppo")),
    ],
)
def test_two_processes_do_the_steps_of_one(mode, one_process, tmp_path):
    """Metrics of every step, weights and optimizer after three steps, and after a fourth from what was saved."""
    if mode.startswith("zero3"):
        done = launch_deepspeed(distributed_steps.__file__, mode, tmp_path)
    else:
        done = pair(distributed_steps.main, mode, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
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
        assert_same_weights(tmp_path / name, expected / name, fresh_critic=mode.endswith("ppo"))
        other = f"{ADAPTERS}/adapter_model.safetensors" if mode.endswith("lora") else OPTIMIZER_STATE
        assert_same_files(tmp_path / name, expected / name, other)
        if mode.endswith("ppo"):
            assert_same_files(tmp_path / name, expected / name, f"{CRITIC}/model.safetensors")
            assert_same_files(tmp_path / name, expected / name, f"{CRITIC}/{OPTIMIZER_STATE}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_do_the_steps_of_two_processes_on_one(tmp_path):
    """To the bit, with half of the model on each."""
    of_nodes, of_one = tmp_path / "nodes", tmp_path / "one"
    for folder, done in (
        (of_nodes, pair(distributed_steps.main, "fsdp2-kl", of_nodes, nodes=2)),
        (of_one, pair(distributed_steps.main, "fsdp2-kl", of_one)),
    ):
        assert done.returncode == 0, done.stderr[-3000:]
        assert torch.load(folder / "told.pt", weights_only=True)["processes"] == 2
    for name in ("first", "second"):
        for file in ("model/model.safetensors", OPTIMIZER_STATE):
            assert (of_nodes / name / file).read_bytes() == (of_one / name / file).read_bytes(), f"{name}/{file}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["copies-rounded", "fsdp2-rounded"])
def test_two_processes_train_adapters_beside_rounded_weights(mode, one_process, tmp_path):
    """A step from the base, and one from what it was saved as: after each, bfloat16 may round what differs by a bit."""
    done = pair(distributed_steps.main, mode, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = one_process("rounded")
    told, alone = (torch.load(folder / "told.pt", weights_only=True) for folder in (tmp_path, expected))
    assert (told["processes"], alone["processes"], len(told["metrics"])) == (2, 1, 2)
    first, one = told["metrics"][0], alone["metrics"][0]
    steady = one.keys() - set(MACHINE_METRICS)
    assert {n: first[n] for n in steady} == pytest.approx({n: one[n] for n in steady}, rel=1e-4, abs=1e-6)
    assert_same_files(tmp_path / "first", expected / "first", OPTIMIZER_STATE)
    assert_same_files(tmp_path / "first", expected / "first", f"{ADAPTERS}/adapter_model.safetensors")
    assert told["metrics"][1]["loss"] == pytest.approx(alone["metrics"][1]["loss"], rel=0.02)


def assert_same_weights(folder, expected, *, fresh_critic):
    """Adam divides by the gradient's size: where that is 0 but for rounding, as behind a fresh critic, a step of 1e-3
    is rounding too, which every CPU does in its own way. So single weights, one in a thousand, may be apart by a tenth
    of a step.
    """
    atol = 1e-4 if fresh_critic else 1e-5
    found, wanted = (load_file(of / "model/model.safetensors") for of in (folder, expected))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        apart = ~torch.isclose(found[name], tensor, rtol=1e-4, atol=atol)
        assert apart.sum() <= tensor.numel() // 1000, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def assert_same_files(folder, expected, file):
    """To 1e-5; Adam's moments, in which every gradient keeps its size, to 1e-4 of the largest of their tensor too."""
    found, wanted = load_file(folder / file), load_file(expected / file)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        is_moment = name.rpartition("/")[2].startswith("exp_avg")
        atol = min(1e-5, 1e-4 * tensor.abs().max().item()) if is_moment else 1e-5
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=atol, msg=f"{file} {name}")
