"""Padding and batching change nothing: the reference is one unpadded row of the processor's own inputs."""

import pytest
import torch

from stages.artifacts.problems import Problem
from stages.model.batches import encode_prompt, prompt_batch, response_batch
from stages.model.head import sampled_logits
from stages.model.layout import Reading
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt


@pytest.fixture(scope="module")
def prompts(tiny_vlm, problems, recipe):
    """Unequal lengths; one image, two, none."""
    questions = [
        (problems[0].question * 2, problems[0].images),
        (problems[2].question, problems[2].images + problems[5].images),
        ("Why?", ()),
        (problems[1].question, problems[1].images),
    ]
    return [policy_prompt(tiny_vlm.processor, recipe.prompt, Problem.asking(*question)) for question in questions]


@pytest.fixture(scope="module")
def responses(tiny_vlm):
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(7, len(tiny_vlm.tokenizer), (n,), generator=rng).tolist() for n in (4, 11, 1, 7)]


def plain_logits(vlm, prompt, ids):
    """Float32 logits (T + 1, V) from the prompt's last position on."""
    inputs = dict(vlm.processor(images=list(prompt.images) or None, text=[prompt.text], return_tensors="pt"))
    for name, value in (("input_ids", ids), ("attention_mask", [1] * len(ids)), ("mm_token_type_ids", [0] * len(ids))):
        inputs[name] = torch.cat([inputs[name], torch.tensor([value])], dim=1)
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 :].float()


def test_every_visual_token_has_its_placeholder(tiny_vlm, prompts):
    image_id = tiny_vlm.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for prompt in prompts:
        encoded = encode_prompt(tiny_vlm, prompt)
        visual_tokens = sum(image.width // 28 * (image.height // 28) for image in prompt.images)
        assert encoded.ids.count(image_id) == visual_tokens
        assert encoded.token_types == [int(token == image_id) for token in encoded.ids]
        if prompt.images:
            assert len(encoded.vision["pixel_values"]) == 4 * visual_tokens


def test_padded_logits_are_those_of_a_row_alone(tiny_vlm, prompts, responses):
    encoded = [encode_prompt(tiny_vlm, prompt) for prompt in prompts]
    batch = response_batch(tiny_vlm, encoded, responses)
    with torch.no_grad():
        logits_BSV = tiny_vlm.model(**batch.inputs, use_cache=False).logits
    width = max(len(prompt.ids) for prompt in encoded)
    for logits_SV, prompt, ids in zip(logits_BSV, prompts, responses, strict=True):
        own = logits_SV[width - 1 : width + len(ids)]
        torch.testing.assert_close(own, plain_logits(tiny_vlm, prompt, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_and_entropy_are_those_of_a_row_alone(tiny_vlm, prompts, responses, temperature):
    encoded = [encode_prompt(tiny_vlm, prompt) for prompt in prompts]
    batch = response_batch(tiny_vlm, encoded, responses)
    assert batch.response_mask_BT.sum(-1).tolist() == [4, 11, 1, 7]
    with torch.no_grad():
        read = LogprobReader(tiny_vlm).read(list(map(Reading, encoded, responses)), temperature=temperature)
    logprobs_BT, entropy_BT = read.logprobs_BT, read.entropy_BT
    assert torch.equal(read.read_BT, batch.response_mask_BT)
    assert not logprobs_BT[~batch.response_mask_BT].any()
    assert not entropy_BT[~batch.response_mask_BT].any()
    for row, (prompt, ids) in enumerate(zip(prompts, responses, strict=True)):
        logits_TV = plain_logits(tiny_vlm, prompt, ids)[:-1] / temperature
        logits_TV[:, list(tiny_vlm.banned_ids)] = float("-inf")
        distribution = torch.distributions.Categorical(logits=logits_TV)
        expected_T = distribution.log_prob(torch.tensor(ids))
        torch.testing.assert_close(logprobs_BT[row, : len(ids)], expected_T, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy_BT[row, : len(ids)], distribution.entropy(), atol=1e-5, rtol=0)


def test_prompts_for_generation_are_padded_on_the_left(tiny_vlm, prompts):
    encoded = [encode_prompt(tiny_vlm, prompt) for prompt in prompts]
    inputs = prompt_batch(tiny_vlm, encoded)
    for row, prompt in enumerate(encoded):
        assert inputs["input_ids"][row, -len(prompt.ids) :].tolist() == prompt.ids
        assert inputs["attention_mask"][row].sum() == len(prompt.ids)


def test_banned_ids_have_no_probability():
    logits = torch.tensor([[1.0, 2.0, 3.0, 9.0]], dtype=torch.bfloat16)
    sampled = sampled_logits(logits, (3,), 0.5)
    assert sampled.dtype == torch.float32
    assert sampled.tolist() == [[2.0, 4.0, 6.0, float("-inf")]]
