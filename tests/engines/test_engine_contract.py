"""What every engine owes its callers. A further engine is one more entry of ENGINES."""

import pytest
import torch

from stages.engines.protocol import Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import wrap_model
from stages.model.prompts import policy_prompt

ENGINES = {"transformers": lambda vlm, rows_per_batch: TransformersEngine(vlm, rows_per_batch=rows_per_batch)}


@pytest.fixture(params=ENGINES)
def open_engine(request):
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def prompts(tiny_vlm, problems, recipe):
    """Prompts of unequal lengths, out of order: one image each, then two images, then none."""
    questions = [
        (problems[0].question * 3, problems[0].images),
        (problems[2].question, problems[2].images),
        (problems[1].question, problems[1].images),
        (problems[3].question, problems[3].images + problems[4].images),
        (problems[4].question, ()),
    ]
    return [policy_prompt(tiny_vlm.processor, recipe.prompt, *question) for question in questions]


def plain_logits(vlm, prompt, ids):
    """Float32 logits (T, V) before each of `ids`: one unpadded row, the processor's own inputs, no cache."""
    inputs = dict(vlm.processor(images=list(prompt.images) or None, text=[prompt.text], return_tensors="pt"))
    for name, value in (("input_ids", ids), ("attention_mask", [1] * len(ids)), ("mm_token_type_ids", [0] * len(ids))):
        inputs[name] = torch.cat([inputs[name], torch.tensor([value])], dim=1)
    with torch.no_grad():
        logits_SV = vlm.model(**inputs, use_cache=False).logits[0].float()
    return logits_SV[-len(ids) - 1 : -1]


def plain_logprobs(vlm, prompt, ids, temperature):
    logits_TV = plain_logits(vlm, prompt, ids) / temperature
    logits_TV[:, list(vlm.banned_ids)] = float("-inf")
    return [log_softmax[token].item() for log_softmax, token in zip(logits_TV.log_softmax(-1), ids, strict=True)]


def with_bias(vlm, biases):
    """The model with a constant added to the logits of some ids."""
    vlm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(vlm.model.lm_head.weight.shape[0]))
    for token, bias in biases.items():
        vlm.model.lm_head.bias.data[token] = bias
    return vlm


def flat(groups):
    return [completion for group in groups for completion in group]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_logprobs_are_those_of_a_plain_forward(open_engine, tiny_vlm, prompts, temperature):
    engine = open_engine(tiny_vlm, 4)
    groups = engine.generate([Request(prompt, 2) for prompt in prompts], Sampling(7, temperature, seed=1))
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            expected = plain_logprobs(tiny_vlm, prompt, completion.ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_score_gives_the_sampler_s_logprobs(open_engine, tiny_vlm, prompts, temperature):
    engine = open_engine(tiny_vlm, 3)
    groups = engine.generate([Request(prompt) for prompt in prompts], Sampling(7, temperature, seed=2))
    requests = [
        ScoreRequest(prompt, group[0].ids[:length])
        for prompt, group, length in zip(prompts, groups, (7, 2, 5, 7, 3), strict=True)
    ]
    scores = engine.score(requests, temperature=temperature)
    for score, request, group in zip(scores, requests, groups, strict=True):
        assert score == pytest.approx(group[0].logprobs[: len(request.ids)], abs=1e-4)


def test_each_prompt_sees_its_own_image(open_engine, tiny_vlm, problems, recipe):
    first, second = [problem for problem in problems if problem.images[0].width == 112][:2]
    ids = tiny_vlm.tokenizer("The digits are 3, 4.")["input_ids"]

    def score(images, others):
        prompts = [policy_prompt(tiny_vlm.processor, recipe.prompt, "What?", images) for images in (images, others)]
        return torch.tensor(open_engine(tiny_vlm, 2).score([ScoreRequest(p, ids) for p in prompts], temperature=1.0))

    own, swapped = score(first.images, second.images), score(second.images, first.images)
    torch.testing.assert_close(own, swapped.flip(0), atol=1e-4, rtol=0)
    assert (own - swapped).abs().max() > 1e-2


def test_a_seed_decides_and_the_global_generator_is_left_alone(open_engine, tiny_vlm, prompts):
    engine = open_engine(tiny_vlm, 4)
    requests = [Request(prompt, 2) for prompt in prompts[:3]]
    before = torch.random.get_rng_state()
    first = engine.generate(requests, Sampling(6, seed=5))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert engine.generate(requests, Sampling(6, seed=5)) == first
    assert engine.generate(requests, Sampling(6, seed=6)) != first
    assert all(group[0].ids != group[1].ids for group in first)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_banned_ids_are_never_sampled(open_engine, tiny_vlm, copy_of, prompts, temperature):
    copied = copy_of(tiny_vlm)
    copied.model.resize_token_embeddings(len(copied.tokenizer) + 3, mean_resizing=False)
    copied.model.generation_config = copied.generation_config
    vlm = wrap_model(copied.model, copied.processor)
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    forbidden = {vlm.tokenizer.convert_tokens_to_ids(name) for name in names}
    forbidden |= {len(vlm.tokenizer), len(vlm.tokenizer) + 2}
    with_bias(vlm, dict.fromkeys(forbidden, 50.0))
    completions = flat(open_engine(vlm, 4).generate([Request(p, 2) for p in prompts], Sampling(6, temperature)))
    assert not forbidden & {token for completion in completions for token in completion.ids}
    assert all(logprob > -30 for completion in completions for logprob in completion.logprobs)


def test_greedy_takes_the_likeliest_allowed_id(open_engine, base_vlm, problems, recipe):
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p.question, p.images) for p in problems[:3]]
    groups = open_engine(base_vlm, 3).generate([Request(prompt) for prompt in prompts], Sampling(12, temperature=0))
    for prompt, group in zip(prompts, groups, strict=True):
        logits_TV = plain_logits(base_vlm, prompt, group[0].ids)
        logits_TV[:, list(base_vlm.banned_ids)] = float("-inf")
        assert group[0].ids == logits_TV.argmax(-1).tolist()
        assert group[0].logprobs == pytest.approx(plain_logprobs(base_vlm, prompt, group[0].ids, 1.0), abs=1e-4)


def test_a_response_ends_with_its_end_token_or_at_the_limit(open_engine, tiny_vlm, copy_of, prompts):
    end = tiny_vlm.end_ids[0]
    vlm = with_bias(copy_of(tiny_vlm), {end: 4.5})
    completions = flat(open_engine(vlm, 8).generate([Request(prompt, 4) for prompt in prompts], Sampling(5, seed=3)))
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs) <= 5
        assert end not in completion.ids[:-1]
        assert (completion.ids[-1] == end) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.ids) == 5


def test_results_come_in_the_order_of_the_requests(open_engine, base_vlm, problems, recipe):
    engine = open_engine(base_vlm, 3)
    chosen = sorted(problems[:7], key=lambda problem: -problem.images[0].width * len(problem.question))
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p.question, p.images) for p in chosen]
    greedy = Sampling(14, temperature=0)
    alone = [engine.generate([Request(prompt)], greedy)[0][0].ids for prompt in prompts]
    counts = [1, 2, 1, 3, 1, 1, 2]
    requests = [Request(prompt, n) for prompt, n in zip(prompts, counts, strict=True)]
    together = engine.generate(requests, greedy)
    assert [[c.ids for c in group] for group in together] == [[ids] * n for ids, n in zip(alone, counts, strict=True)]
    assert len({tuple(ids) for ids in alone}) > 3


@pytest.mark.parametrize("rows_per_batch", [1, 2, 64])
def test_batching_changes_no_result(open_engine, base_vlm, problems, recipe, rows_per_batch):
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p.question, p.images) for p in problems[:5]]
    ids = base_vlm.tokenizer("The digits are 1, 2, 3, 4.")["input_ids"]
    requests = [Request(prompt) for prompt in prompts]
    scored = [ScoreRequest(prompt, ids[: 3 + 2 * i]) for i, prompt in enumerate(prompts)]
    engine, reference = open_engine(base_vlm, rows_per_batch), open_engine(base_vlm, 3)
    greedy = Sampling(10, temperature=0)
    assert [c.ids for c in flat(engine.generate(requests, greedy))] == [
        c.ids for c in flat(reference.generate(requests, greedy))
    ]
    for own, other in zip(engine.score(scored, temperature=0.7), reference.score(scored, temperature=0.7), strict=True):
        assert own == pytest.approx(other, abs=1e-4)


def test_no_requests_give_no_results(open_engine, tiny_vlm):
    engine = open_engine(tiny_vlm, 2)
    assert engine.generate([], Sampling(3)) == []
    assert engine.score([], temperature=1.0) == []
