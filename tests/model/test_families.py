"""The vision-language families that people use, each with its own classes: a row of a mixed batch is a row alone.

Rows without an image, with one, with two of unequal sizes, and with one of another size. The reference is the
processor's own encoding of one prompt, through the model's own logits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from readings import noisy
from stages.artifacts.problems import Problem
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import ModelError
from stages.model.batches import encode_prompt
from stages.model.head import sampled_logits
from stages.model.layout import Reading, padded_layout
from stages.model.loading import VisionLanguageModel, load_codec, load_model
from stages.model.logprobs import LogprobReader, TokenLogprobs
from stages.model.prompts import Prompt, policy_prompt
from stages.model.tree_attention import layer_kinds
from stages.sections import OptimizerSection, PromptSection, TrainerSection
from stages.training.losses import SupervisedLoss
from stages.training.trainer import Trainer, TrainingRow
from tiny_families import FAMILIES, REFUSED, ROWS, TAKEN, make

TOLERANCE = 1e-4
"""In nats: rounding in float32. Another image is worth a hundred times as much."""


@dataclass(frozen=True)
class Case:
    name: str
    vlm: VisionLanguageModel
    prompts: list[Prompt]
    responses: list[list[int]]

    def readings(self) -> list[Reading]:
        pairs = zip(self.prompts, self.responses, strict=True)
        return [Reading(encode_prompt(self.vlm, prompt), ids) for prompt, ids in pairs]


def ask(vlm: VisionLanguageModel, question: str, *images: Any) -> Prompt:
    return policy_prompt(vlm.processor, PromptSection(), Problem.asking(question, images))


@pytest.fixture(scope="module", params=TAKEN)
def case(request, tiny_vlm, tmp_path_factory) -> Case:
    if request.param == "SmolVLM2":
        pytest.importorskip("num2words", reason="the extra smolvlm")
    vlm = load_model(make(FAMILIES[request.param], tiny_vlm.tokenizer, tmp_path_factory.mktemp("family")))
    prompts = [
        ask(vlm, "Why?"),
        ask(vlm, "What is the sum?", noisy(84, 28, 0)),
        ask(vlm, "Which?", noisy(56, 84, 1), noisy(40, 70, 2)),
        ask(vlm, "What is the sum of the digits?", noisy(28, 60, 3)),
    ]
    allowed = np.setdiff1d(np.arange(len(vlm.tokenizer)), [*vlm.banned_ids, *vlm.tokenizer.all_special_ids])
    rng = np.random.default_rng(0)
    return Case(request.param, vlm, prompts, [rng.choice(allowed, length).tolist() for length in (5, 9, 3, 7)])


def alone(vlm: VisionLanguageModel, prompt: Prompt, ids: list[int]) -> torch.Tensor:
    """Log-probs (T,) of a response behind the processor's own tensors of its prompt."""
    images = [list(prompt.images)] if prompt.images else None
    inputs = dict(vlm.processor(images=images, text=[prompt.text], return_tensors="pt", add_special_tokens=False))
    before = inputs["input_ids"].shape
    for name, value in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.cat([value, torch.tensor([ids])], dim=1)
        elif value.shape == before:  # attended to, and no image
            inputs[name] = torch.cat([value, torch.full((1, len(ids)), int(name == "attention_mask"))], dim=1)
    logits_TV = vlm.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1]
    logprobs_TV = sampled_logits(logits_TV, vlm.banned_ids, 1.0).log_softmax(-1)
    return logprobs_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_the_table_has_every_family_that_is_tried():
    assert {name: model_type for name, (model_type, _) in ROWS.items()} == {
        name: f"`{family.model_type}`" for name, family in FAMILIES.items()
    }
    assert {ROWS[name][1].partition(":")[0] for name in TAKEN} == {"packed", "plain"}


@torch.no_grad()
def test_a_row_of_a_mixed_batch_reads_as_the_row_alone(case):
    reader, readings = LogprobReader(case.vlm), case.readings()
    others = layer_kinds(case.vlm.model.config.get_text_config()) - {"full_attention"}
    assert ROWS[case.name][1] == ("packed" if reader.packed else f"plain: layers of `{'`, `'.join(sorted(others))}`")
    expected_N = torch.cat([alone(case.vlm, *row) for row in zip(case.prompts, case.responses, strict=True)])
    for layout in {reader.packed: reader.layout(readings), False: padded_layout(case.vlm, readings)}.values():
        found_N, *_ = TokenLogprobs(case.vlm)(layout, 1.0)
        torch.testing.assert_close(found_N, expected_N, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_an_image_is_seen(case):
    one, other = (alone(case.vlm, ask(case.vlm, "What?", noisy(28, 60, seed)), [20, 21, 22]) for seed in (3, 4))
    assert (one - other).abs().max() > 0.01


@torch.no_grad()
def test_a_mixed_batch_samples_what_the_rows_alone_say(case):
    requests = [Request(prompt, 2) for prompt in case.prompts]
    groups = TransformersEngine(case.vlm).generate(requests, Sampling(6, 1.0, seed=1))
    assert len({tuple(completion.ids) for group in groups for completion in group}) > len(groups)
    for prompt, group in zip(case.prompts, groups, strict=True):
        for completion in group:
            expected_T = alone(case.vlm, prompt, completion.ids)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected_T, atol=TOLERANCE, rtol=0)


def test_a_step_s_gradient_is_that_of_the_rows_alone(case, copy_of):
    own, twin = copy_of(case.vlm), copy_of(case.vlm)
    section = OptimizerSection(learning_rate=1e-9, max_grad_norm=1e9)
    trainer = Trainer(own, section, temperature=1.0, machine=TrainerSection(tokens_per_micro_batch=100_000))
    rows = [TrainingRow(reading.prompt, reading.ids, "repair") for reading in case.readings()]
    trainer.step(rows, SupervisedLoss())
    tokens = sum(map(len, case.responses))
    for prompt, ids in zip(case.prompts, case.responses, strict=True):
        (-alone(twin, prompt, ids).sum() / tokens).backward()
    expected = {name: p.grad for name, p in twin.model.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in own.model.named_parameters() if p.grad is not None}
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert gradient.isfinite().all()
        assert (found[name] - gradient).norm() <= 1e-5 * whole, name
    assert any("vision" in name or "visual" in name for name in expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_in_a_line_before_its_weights_are_loaded(name, tiny_vlm, tmp_path):
    folder = make(FAMILIES[name], tiny_vlm.tokenizer, tmp_path)
    with pytest.raises(ModelError) as caught:
        load_codec(folder)
    told = str(caught.value)
    assert told.startswith(f"{folder}: its ")
    assert ROWS[name][1].removeprefix("refused: ") in told
    assert told.endswith("take another model")
    assert "\n" not in told
