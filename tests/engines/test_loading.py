"""Which engine runs, and what is said where it cannot."""

import os
import sys

import pytest
import torch

from stages.engines.loading import engine_name, open_engine, open_model, open_reference, open_sampler, with_engine
from stages.engines.vllm_engine import _environment
from stages.errors import RecipeError
from stages.recipe import Recipe, load_recipe
from stages.runtime import processes


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)


@pytest.fixture
def some_vllm(monkeypatch, tmp_path):
    """A package of that name that is found, and never imported."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("no_vllm")
def test_vllm_that_is_not_installed_is_refused_before_any_compute(base_dir):
    recipe = load_recipe("digits", ["engine.name=vllm"])
    message = (
        r"engine\.name is vllm, which is not installed; pip install '\.\[vllm\]' .* or set engine\.name=transformers"
    )
    with pytest.raises(RecipeError, match=message):
        with_engine(recipe)
    with pytest.raises(RecipeError, match=message):
        open_engine(base_dir, recipe)
    assert engine_name(Recipe()) == engine_name(load_recipe("digits", ["engine.name=transformers"]))


@pytest.mark.usefixtures("some_vllm")
def test_auto_is_vllm_where_it_is_installed_and_there_is_a_gpu(monkeypatch):
    for there_is, expected in ((True, "vllm"), (False, "transformers")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there_is=there_is: there_is)
        planned = with_engine(Recipe()).subset("engine")["engine"]
        assert planned["name"] == expected
        assert engine_name(load_recipe("digits", ["engine.name=transformers"])) == "transformers"


def test_what_changes_no_distribution_is_no_part_of_a_plan():
    settings = [
        "gpu_memory_utilization=0.5",
        "gpu_memory_utilization_alone=0.5",
        "tensor_parallel_size=2",
        "distributed_executor=ray",
        "data_parallel_size=2",
    ]
    changed = load_recipe("digits", [f"engine.vllm.{setting}" for setting in settings])
    assert changed.subset("engine") == load_recipe("digits").subset("engine")
    longer = load_recipe("digits", ["engine.vllm.max_model_len=99"])
    assert longer.subset("engine") != load_recipe("digits").subset("engine")


@pytest.mark.usefixtures("some_vllm")
def test_another_number_of_engines_than_processes_is_refused(base_dir):
    recipe = load_recipe("digits", ["engine.name=vllm", "engine.vllm.data_parallel_size=4"])
    with pytest.raises(RecipeError, match=r"data_parallel_size is 4, but .* start accelerate launch --num_processes 4"):
        open_engine(base_dir, recipe)


@pytest.mark.usefixtures("some_vllm")
def test_tensor_parallelism_in_each_of_several_processes_is_refused(base_dir, base_vlm, monkeypatch):
    monkeypatch.setattr("stages.runtime.processes.count", lambda: 2)
    recipe = load_recipe("digits", ["engine.name=vllm", "engine.vllm.tensor_parallel_size=2"])
    with pytest.raises(RecipeError, match=r"tensor_parallel_size is 2 in each of 2 processes"):
        open_sampler(base_vlm, base_dir, recipe)


@pytest.mark.parametrize("launched", [{}, {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}])
def test_vllm_starts_processes_that_know_nothing_of_a_launcher_and_share_no_cuda(monkeypatch, launched):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with _environment(on_cpu=False):
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert not launched.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in launched} == launched
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    with _environment(on_cpu=False):
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


def test_only_what_a_trainer_cuts_into_shards_is_loaded_onto_the_cpu(base_dir, monkeypatch):
    """Of several processes with a GPU each, for which another device stands."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "device", lambda: torch.device("meta"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = load_recipe("digits", ["model.dtype=bfloat16"])
    cut = open_model(base_dir, recipe, master_weights=True), open_reference(base_dir, recipe)
    whole = open_model(base_dir, recipe), open_engine(base_dir, recipe, as_trained=True).vlm
    assert {vlm.device.type for vlm in cut} == {"cpu"}
    assert {vlm.device.type for vlm in whole} == {"meta"}
