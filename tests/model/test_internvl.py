"""A second architecture, with its own processor, tiling and placeholders, through the same code."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from data.strips.tiny_model import plain_logprobs
from stages.artifacts.problems import Problem
from stages.engines.protocol import Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt, response_batch
from stages.model.prompts import policy_prompt
from stages.sections import OptimizerSection, TrainerSection
from stages.training.losses import SupervisedLoss
from stages.training.trainer import Trainer, TrainingRow
from tiny_internvl import SPECIAL


@pytest.fixture(scope="module")
def prompts(tiny_internvl, problems, recipe):
    images = [problems[0].images, (Image.new("RGB", (28, 56), "red"), problems[1].images[0]), ()]
    return [
        policy_prompt(tiny_internvl.processor, recipe.prompt, replace(problem, images=own))
        for problem, own in zip(problems, images, strict=False)
    ]


def test_every_tile_has_its_placeholder(tiny_internvl, prompts):
    for prompt in prompts:
        encoded = encode_prompt(tiny_internvl, prompt)
        tiles = len(encoded.vision["pixel_values"]) if prompt.images else 0
        assert encoded.ids.count(tiny_internvl.model.config.image_token_id) == tiles
        assert tiles == 0 or tiles > len(prompt.images)


def test_image_and_video_tokens_are_banned(tiny_internvl):
    expected = {tiny_internvl.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL.values()}
    assert expected <= set(tiny_internvl.banned_ids)


def test_logprobs_are_those_of_a_plain_forward(tiny_internvl, prompts):
    vlm = tiny_internvl
    engine = TransformersEngine(vlm, rows_per_batch=3)
    groups = engine.generate([Request(prompt, 2) for prompt in prompts], Sampling(6, 0.7, seed=1))
    assert groups[0][0].ids != groups[0][1].ids
    for prompt, group in zip(prompts, groups, strict=True):
        scores = engine.score([ScoreRequest(prompt, c.ids) for c in group], temperature=0.7)
        inputs = dict(vlm.processor(images=list(prompt.images) or None, text=[prompt.text], return_tensors="pt"))
        for completion, score in zip(group, scores, strict=True):
            ids = torch.tensor([completion.ids])
            own = inputs | {"input_ids": torch.cat([inputs["input_ids"], ids], 1)}
            own["attention_mask"] = torch.ones_like(own["input_ids"])
            with torch.no_grad():
                logits_TV = vlm.model(**own).logits[0, -len(completion.ids) - 1 : -1] / 0.7
            logits_TV[:, list(vlm.banned_ids)] = float("-inf")
            expected = logits_TV.log_softmax(-1).gather(1, ids.T)[:, 0].tolist()
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            assert score.logprobs == pytest.approx(expected, abs=1e-4)


def test_swapped_images_change_the_logprobs(tiny_internvl, problems, recipe):
    def score(problem):
        prompt = policy_prompt(tiny_internvl.processor, recipe.prompt, Problem.asking("What?", problem.images))
        batch = response_batch(tiny_internvl, [encode_prompt(tiny_internvl, prompt)], [[20, 21]])
        with torch.no_grad():
            return plain_logprobs(tiny_internvl, batch, temperature=1.0)

    same_size = [problem for problem in problems if problem.images[0].width == 112]
    assert (score(same_size[0]) - score(same_size[1])).abs().max() > 1e-4


def test_a_step_lowers_the_supervised_loss(tiny_internvl, copy_of, prompts):
    vlm = copy_of(tiny_internvl)
    optimizer = OptimizerSection(learning_rate=3e-3)
    trainer = Trainer(vlm, optimizer, temperature=1.0, machine=TrainerSection(tokens_per_micro_batch=100))
    rows = [TrainingRow(encode_prompt(vlm, prompt), [30, 31, 32, 2][-n:], "repair")
            for prompt, n in zip(prompts, (4, 2, 3), strict=True)]  # fmt: skip
    losses = [trainer.step(rows, SupervisedLoss())["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    changed = {
        name.split(".")[1]
        for (name, new), old in zip(vlm.model.named_parameters(), tiny_internvl.model.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= changed
