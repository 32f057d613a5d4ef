"""vLLM beside the contract: raw log-probs that agree, weights taken while it runs, prompts that it reads alike."""

import signal
import time
from dataclasses import replace

import psutil
import pytest
import torch

from stages.engines.models import Models
from stages.engines.protocol import Batch, Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.engines.vllm_engine import VllmEngine
from stages.engines.vllm_requests import unexpanded
from stages.errors import ModelError, RecipeError
from stages.model.loading import load_codec
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.sections import ModelSection, VllmSection
from stages.training.resident import ResidentModels

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def prompts(tiny_vlm, problems, recipe):
    return [policy_prompt(tiny_vlm.processor, recipe.prompt, p) for p in problems[:4]]


@pytest.fixture
def own_process(monkeypatch):
    """Engines that are started from here on run in processes of their own."""
    from vllm import envs

    envs.disable_envs_cache()  # one in this process has frozen them
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def test_its_raw_logprobs_are_those_of_score_where_nothing_is_banned(start_vllm, tiny_vlm, prompts, copy_of):
    """Float32, temperature 1."""
    from vllm import SamplingParams

    engine = start_vllm(tiny_vlm)
    free = TransformersEngine(replace(copy_of(tiny_vlm), banned_ids=()))
    ids = tiny_vlm.tokenizer("The digits are 3, 4. 3 + 4 = 7.")["input_ids"]
    given = [unexpanded(engine.codec, replace(prompt, spliced_ids=tuple(ids))) for prompt in prompts]
    raw = engine._llm.generate(given, SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0), use_tqdm=False)
    scores = free.score([ScoreRequest(prompt, ids) for prompt in prompts], temperature=1.0)
    for output, score in zip(raw, scores, strict=True):
        found = [step[token].logprob for step, token in zip(output.prompt_logprobs[-len(ids) :], ids, strict=True)]
        assert found == pytest.approx(score.logprobs, abs=1e-4)


def test_a_running_engine_takes_new_weights_and_forgets_what_the_old_ones_made(
    start_vllm, tiny_vlm, prompts, copy_of, tmp_path
):
    trained = copy_of(tiny_vlm)
    engine = start_vllm(trained)
    requests = [Request(prompt, 2) for prompt in prompts]
    before = engine.generate(requests, Sampling(5, 0.7, seed=1))
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    engine.follow(trained.save, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    after = engine.generate(requests, Sampling(5, 0.7, seed=1))
    assert [c.ids for group in after for c in group] != [c.ids for group in before for c in group]
    asked = [ScoreRequest(prompt, c.ids) for prompt, group in zip(prompts, after, strict=True) for c in group]
    expected = TransformersEngine(trained).score(asked, temperature=0.7)
    for completion, score in zip((c for group in after for c in group), expected, strict=True):
        assert completion.logprobs == pytest.approx(score.logprobs, abs=1e-4)


@pytest.mark.usefixtures("own_process")
def test_an_engine_in_a_process_of_its_own_outlives_ctrl_c(start_vllm, tiny_vlm, prompts):
    """A terminal sends it to every process; the one that was asked stops when its shard is finished."""
    before = psutil.Process().children(recursive=True)
    engine = start_vllm(tiny_vlm, max_model_len=100)
    children = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert children
    for child in children:
        child.send_signal(signal.SIGINT)
    time.sleep(1)
    assert [len(group) for group in engine.generate([Request(prompts[0])], Sampling(5))] == [1]


@pytest.mark.usefixtures("own_process")
def test_an_engine_in_a_process_of_its_own_is_fed(start_vllm, base_vlm, problems, recipe):
    """The second batch enters before the first has ended; each comes out as it does alone."""
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, problem) for problem in problems[:12]]
    batches = [
        Batch([Request(prompt, 2) for prompt in prompts[start : start + 4]], Sampling(48, 1.0, seed=start))
        for start in (0, 4, 8)
    ]
    engine, made = start_vllm(base_vlm, max_model_len=512), []
    expected = [engine.generate(batch.requests, batch.sampling) for batch in batches]
    fed = engine.stream(made.append(number) or batch for number, batch in enumerate(batches))
    found = [next(fed)]
    assert made == [0, 1, 2]
    (between,) = engine.generate([Request(prompts[0], 2)], batches[0].sampling)
    assert [c.ids for c in between] == [c.ids for c in expected[0][0]]
    found += fed
    for groups, wanted in zip(found, expected, strict=True):
        assert [[c.ids for c in group] for group in groups] == [[c.ids for c in group] for group in wanted]
    left = engine.stream(batches)
    next(left)
    left.close()
    assert not engine._llm.llm_engine.has_unfinished_requests()


def test_a_prompt_that_vllm_reads_otherwise_is_refused(tiny_vlm, prompts, tmp_path):
    """Here the images are larger on our side than on vLLM's."""
    tiny_vlm.save(tmp_path)
    codec = load_codec(tmp_path, min_pixels=28 * 28 * 12)
    engine = VllmEngine(tmp_path, codec, ModelSection(dtype="float32"), VllmSection(), lambda: None)
    with pytest.raises(ModelError, match=r"vLLM read a prompt as \d+ ids, this project as \d+; they differ from id"):
        engine.generate([Request(prompts[0])], Sampling(3))


def test_a_temperature_that_vllm_would_raise_is_refused(start_vllm, tiny_vlm, prompts):
    with pytest.raises(RecipeError, match=r"temperature is 0\.005, but vLLM samples at 0\.01 or more"):
        start_vllm(tiny_vlm).generate([Request(prompts[0])], Sampling(3, 0.005))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_sampled_from_logits_that_are_no_numbers(start_vllm, tiny_vlm, prompts, copy_of, temperature):
    diverged = copy_of(tiny_vlm)
    for name, parameter in diverged.model.named_parameters():
        if name.endswith("language_model.norm.weight"):
            parameter.data.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(ModelError, match="its logits hold NaN or infinity"):
        start_vllm(diverged).generate([Request(prompts[0])], Sampling(3, temperature))


def test_the_longest_prompt_is_the_recipe_s_if_it_says(start_vllm, tiny_vlm, prompts):
    assert start_vllm(tiny_vlm).codec.max_length == 1024
    short = start_vllm(tiny_vlm, max_model_len=40)
    assert short.codec.max_length == 40
    assert [len(group) for group in short.generate([Request(prompts[0])], Sampling(35))] == [0]
    assert [len(group) for group in short.generate([Request(prompts[0])], Sampling(2))] == [1]


def test_more_prompts_than_one_step_takes(start_vllm, tiny_vlm, prompts):
    """On a CPU a step takes 4,096 tokens; a prompt that is read in parts has a seed all the same."""
    engine = start_vllm(tiny_vlm)
    requests = [Request(replace(prompts[n % 4], spliced_ids=(30 + n,) * 700)) for n in range(24)]
    groups = engine.generate(requests, Sampling(3, seed=1))
    asked = [ScoreRequest(r.prompt, group[0].ids) for r, group in zip(requests, groups, strict=True)]
    for group, score in zip(groups, TransformersEngine(tiny_vlm).score(asked, temperature=1.0), strict=True):
        assert group[0].logprobs == pytest.approx(score.logprobs, abs=1e-4)


def test_an_engine_takes_another_share_of_its_device_where_it_is_alone(tiny_vlm, tmp_path):
    """In a loop none is."""
    tiny_vlm.save(tmp_path)
    shares = ["engine.vllm.gpu_memory_utilization=0.2", "engine.vllm.gpu_memory_utilization_alone=0.4"]
    recipe = load_recipe("digits", ["engine.name=vllm", "engine.vllm.max_model_len=256", *shares])
    found = {}
    for models in (Models(), ResidentModels()):
        config = models.engine_alone(tmp_path, recipe)._llm.llm_engine.vllm_config.cache_config
        found[type(models)] = config.gpu_memory_utilization
    assert found == {Models: 0.4, ResidentModels: 0.2}
