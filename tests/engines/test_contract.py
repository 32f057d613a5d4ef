"""What every engine owes its callers. A further engine is one more entry of ENGINES."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from noise import noisy
from scripted_engine import ScriptedEngine
from stages.artifacts.problems import Problem, Video
from stages.engines.protocol import Batch, Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt
from stages.model.loading import wrap_model
from stages.model.prompts import continuation_prompt, policy_prompt, repair_prompt

ENGINES = ["scripted", "transformers", "drafted", pytest.param("vllm", marks=pytest.mark.vllm)]
STYLE = SimpleNamespace(instruction="")


class Drafted(TransformersEngine):
    """Each request comes with a draft: what it is answered without one, every fifth token replaced by its first."""

    def generate(self, requests, sampling):
        free = super().generate(requests, sampling)
        drafts = [
            [group[0].ids[0] if place % 5 == 4 else token for place, token in enumerate(group[0].ids)] if group else []
            for group in free
        ]
        drafted = [replace(request, draft_ids=ids) for request, ids in zip(requests, drafts, strict=True)]
        return super().generate(drafted, sampling)


@pytest.fixture(scope="module", params=ENGINES)
def open_engine(request):
    """A function: the engine with a model, that generates so many rows at once if it asks."""
    if request.param == "scripted":
        return lambda vlm, _: ScriptedEngine(vlm)
    if request.param in ("transformers", "drafted"):
        engine = Drafted if request.param == "drafted" else TransformersEngine
        return lambda vlm, rows_per_batch: engine(vlm, rows_per_batch=rows_per_batch)
    start = request.getfixturevalue("start_vllm")
    return lambda vlm, _: start(vlm)


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
    return [policy_prompt(tiny_vlm.processor, recipe.prompt, Problem.asking(*question)) for question in questions]


@pytest.fixture(params=["qwen", "internvl"])
def asked(request, tiny_vlm, tiny_internvl, prompts, recipe):
    """A model of each architecture with prompts: images, text alone, given ids in the middle or at the end, video."""
    if request.param == "internvl":
        pictures = [(noisy(56, 28, 1),), (noisy(28, 84, 2), noisy(28, 28, 3)), ()]
        render = tiny_internvl.processor
        return tiny_internvl, [
            policy_prompt(render, recipe.prompt, Problem.asking("Which?" * n, own)) for n, own in enumerate(pictures)
        ]
    draft = tiny_vlm.tokenizer("The digits are 3, 4.")["input_ids"]
    problem = Problem.asking("What?", prompts[0].images)
    film = Video([noisy(56, 84, n) for n in range(5)], 3.0, "problem p")
    return tiny_vlm, [
        *prompts,
        continuation_prompt(prompts[3], draft),
        repair_prompt(tiny_vlm.processor, recipe.prompt, problem, draft[::-1], "7"),
        policy_prompt(tiny_vlm.processor, STYLE, Problem.asking("And then?", (), film)),
        policy_prompt(tiny_vlm.processor, STYLE, Problem.asking("Which?", (noisy(84, 28, 7),), replace(film, fps=0.5))),
    ]


def plain_logits(engine, vlm, prompt, ids):
    """Float32 logits (T, V) before each of `ids`: one unpadded row, the processor's own inputs, no cache."""
    if isinstance(engine, ScriptedEngine):
        return engine.logits(prompt, len(ids)).float()
    video = {}
    if prompt.video is not None:
        frames = list(prompt.video.frames)
        metadata = {"total_num_frames": len(frames), "fps": prompt.video.fps, "frames_indices": [*range(len(frames))]}
        video = {"videos": [frames], "video_metadata": [metadata]}
    inputs = dict(vlm.processor(images=list(prompt.images) or None, text=[prompt.text], return_tensors="pt", **video))
    tail = vlm.tokenizer(prompt.tail)["input_ids"] if prompt.tail else []
    behind = [*prompt.spliced_ids, *tail, *ids]
    columns = {"input_ids": behind, "attention_mask": [1] * len(behind), "mm_token_type_ids": [0] * len(behind)}
    for name in columns.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], torch.tensor([columns[name]])], dim=1)
    with torch.no_grad():
        logits_SV = vlm.model(**inputs, use_cache=False).logits[0].float()
    return logits_SV[-len(ids) - 1 : -1]


def plain_distributions(engine, vlm, prompt, ids, temperature):
    """Log-probs (T, V)."""
    logits_TV = plain_logits(engine, vlm, prompt, ids) / temperature
    logits_TV[:, list(vlm.banned_ids)] = float("-inf")
    return logits_TV.log_softmax(-1)


def plain_logprobs(engine, vlm, prompt, ids, temperature):
    distributions_TV = plain_distributions(engine, vlm, prompt, ids, temperature)
    return [log_softmax[token].item() for log_softmax, token in zip(distributions_TV, ids, strict=True)]


def flat(groups):
    return [completion for group in groups for completion in group]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_logprobs_are_those_of_a_plain_forward(open_engine, asked, temperature):
    vlm, prompts = asked
    engine = open_engine(vlm, 4)
    groups = engine.generate([Request(prompt, 2) for prompt in prompts], Sampling(7, temperature, seed=1))
    for prompt, group in zip(prompts, groups, strict=True):
        assert len(group) == 2
        for completion in group:
            expected = plain_logprobs(engine, vlm, prompt, completion.ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_score_gives_the_sampler_s_logprobs(open_engine, asked, temperature):
    vlm, prompts = asked
    engine = open_engine(vlm, 3)
    groups = engine.generate([Request(prompt) for prompt in prompts], Sampling(7, temperature, seed=2))
    requests = [
        ScoreRequest(prompt, group[0].ids[: 7 - 2 * (place % 3)])
        for place, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    scores = engine.score(requests, temperature=temperature)
    for score, request, group in zip(scores, requests, groups, strict=True):
        assert score.logprobs == pytest.approx(group[0].logprobs[: len(request.ids)], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_score_gives_the_entropy_before_each_token(open_engine, asked, temperature):
    vlm, prompts = asked
    engine = open_engine(vlm, 3)
    requests = [ScoreRequest(prompt, (30, 31, 32, 33)[: 1 + place % 4]) for place, prompt in enumerate(prompts)]
    for request, score in zip(requests, engine.score(requests, temperature=temperature), strict=True):
        expected = [
            -sum(math.exp(logprob) * logprob for logprob in logprobs_V.tolist() if logprob > -math.inf)
            for logprobs_V in plain_distributions(engine, vlm, request.prompt, request.ids, temperature)
        ]
        assert score.entropies == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_score_gives_the_divergence_from_another_image(open_engine, tiny_vlm, problems, recipe, temperature):
    """KL summed token by token; exactly 0 where there is nothing to compare with."""
    prompts = [policy_prompt(tiny_vlm.processor, recipe.prompt, problem) for problem in problems[:3]]
    blanked = replace(problems[0], images=[Image.new("RGB", problems[0].images[0].size)])
    blank = policy_prompt(tiny_vlm.processor, recipe.prompt, blanked)
    asked = [
        (prompts[0], (30, 31, 32, 33), blank),
        (prompts[0], (30, 31), blank),
        (prompts[1], (32, 31, 30), None),
        (prompts[2], (33,), None),
    ]
    scores = open_engine(tiny_vlm, 2).score([ScoreRequest(*each) for each in asked], temperature=temperature)
    for (prompt, ids, against), score in zip(asked, scores, strict=True):
        assert len(score.divergences) == len(score.logprobs) == len(ids)
        if against is None:
            assert set(score.divergences) == {0.0}
            continue
        own_TV, other_TV = (
            plain_distributions(open_engine(tiny_vlm, 2), tiny_vlm, each, ids, temperature).tolist()
            for each in (prompt, against)
        )
        expected = [
            sum(math.exp(p) * (p - q) for p, q in zip(own_V, other_V, strict=True) if p > -math.inf)
            for own_V, other_V in zip(own_TV, other_TV, strict=True)
        ]
        assert min(expected) > 1e-4
        assert score.divergences == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_each_prompt_sees_its_own_image(open_engine, tiny_vlm, problems, recipe):
    first, second = [problem for problem in problems if problem.images[0].width == 112][:2]
    ids = tiny_vlm.tokenizer("The digits are 3, 4.")["input_ids"]

    def score(*images):
        problems = [Problem.asking("What?", own) for own in images]
        prompts = [policy_prompt(tiny_vlm.processor, recipe.prompt, problem) for problem in problems]
        scores = open_engine(tiny_vlm, 2).score([ScoreRequest(p, ids) for p in prompts], temperature=1.0)
        return torch.tensor([score.logprobs for score in scores])

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
    again, other = (engine.generate(requests, Sampling(6, seed=seed)) for seed in (5, 6))
    assert [c.ids for c in flat(again)] == [c.ids for c in flat(first)]
    assert [c.ids for c in flat(other)] != [c.ids for c in flat(first)]
    assert len({tuple(c.ids) for c in flat(first)}) == 6


@pytest.fixture(scope="module")
def tempted(tiny_vlm, copy_of):
    """A model with more rows than tokens that would sample nothing but its forbidden ids, if it could."""
    copied = copy_of(tiny_vlm)
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    vocabulary = len(copied.tokenizer)
    copied.model.resize_token_embeddings(vocabulary + 3, mean_resizing=False)
    copied.model.generation_config = copied.generation_config
    forbidden = [*copied.tokenizer.convert_tokens_to_ids(names), *range(vocabulary, vocabulary + 3)]
    # One of a pair of opposite rows is above 0 always, and one of three pairs far above all other rows.
    weight = copied.model.get_input_embeddings().weight.data
    weight[forbidden[0:6:2]] *= 100
    weight[forbidden[1:6:2]] = -weight[forbidden[0:6:2]]
    return wrap_model(copied.model, copied.processor), set(forbidden)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_banned_ids_are_never_sampled(open_engine, tempted, prompts, temperature):
    vlm, forbidden = tempted
    engine = open_engine(vlm, 4)
    completions = flat(engine.generate([Request(p, 2) for p in prompts], Sampling(6, temperature)))
    logits_TV = plain_logits(engine, vlm, prompts[0], completions[0].ids)
    assert set(logits_TV.argmax(-1).tolist()) <= forbidden
    assert not forbidden & {token for completion in completions for token in completion.ids}
    assert all(logprob > -30 for completion in completions for logprob in completion.logprobs)


def test_greedy_takes_the_likeliest_allowed_id(open_engine, base_vlm, problems, recipe):
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in problems[:3]]
    engine = open_engine(base_vlm, 3)
    groups = engine.generate([Request(prompt) for prompt in prompts], Sampling(12, temperature=0))
    for prompt, group in zip(prompts, groups, strict=True):
        logits_TV = plain_logits(engine, base_vlm, prompt, group[0].ids)
        logits_TV[:, list(base_vlm.banned_ids)] = float("-inf")
        assert group[0].ids == logits_TV.argmax(-1).tolist()
        assert group[0].logprobs == pytest.approx(plain_logprobs(engine, base_vlm, prompt, group[0].ids, 1.0), abs=1e-4)


def test_a_response_ends_with_its_end_token_or_at_the_limit(open_engine, base_vlm, problems, recipe):
    (end,) = base_vlm.end_ids
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in problems[:6]]
    completions = flat(open_engine(base_vlm, 8).generate([Request(p, 4) for p in prompts], Sampling(45, 1.0, seed=3)))
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs) <= 45
        assert end not in completion.ids[:-1]
        assert (completion.ids[-1] == end) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.ids) == 45


def test_a_prompt_that_leaves_no_room_gets_no_completion(open_engine, tiny_vlm, prompts):
    """And the others get theirs; the last that fits is not cut."""
    engine = open_engine(tiny_vlm, 2)
    assert engine.codec.max_length == 1024
    shorter, longer = prompts[4], prompts[0]
    room = 1024 - len(encode_prompt(tiny_vlm, longer).ids)
    requests = [Request(continuation_prompt(prompt, [30] * (room - 3)), 2) for prompt in (shorter, longer, shorter)]
    fitting, cut = engine.generate(requests, Sampling(3)), engine.generate(requests, Sampling(4))
    assert [len(group) for group in fitting] == [2, 2, 2]
    assert [len(group) for group in cut] == [2, 0, 2]
    assert cut[0][0].logprobs[0] == pytest.approx(
        plain_logprobs(engine, tiny_vlm, requests[0].prompt, cut[0][0].ids[:1], 1.0)[0], abs=1e-4
    )


def test_results_come_in_the_order_of_the_requests(open_engine, base_vlm, problems, recipe):
    engine = open_engine(base_vlm, 3)
    chosen = sorted(problems[:7], key=lambda problem: -problem.images[0].width * len(problem.question))
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in chosen]
    greedy = Sampling(14, temperature=0)
    alone = [engine.generate([Request(prompt)], greedy)[0][0].ids for prompt in prompts]
    counts = [1, 2, 1, 3, 1, 1, 2]
    requests = [Request(prompt, n) for prompt, n in zip(prompts, counts, strict=True)]
    together = engine.generate(requests, greedy)
    assert [[c.ids for c in group] for group in together] == [[ids] * n for ids, n in zip(alone, counts, strict=True)]
    assert len({tuple(ids) for ids in alone}) > 3


@pytest.mark.parametrize("rows_per_batch", [1, 2, 64])
def test_batching_changes_no_result(open_engine, base_vlm, problems, recipe, rows_per_batch):
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in problems[:5]]
    ids = base_vlm.tokenizer("The digits are 1, 2, 3, 4.")["input_ids"]
    requests = [Request(prompt) for prompt in prompts]
    scored = [ScoreRequest(prompt, ids[: 3 + 2 * i]) for i, prompt in enumerate(prompts)]
    engine, reference = open_engine(base_vlm, rows_per_batch), open_engine(base_vlm, 3)
    greedy = Sampling(10, temperature=0)
    assert [c.ids for c in flat(engine.generate(requests, greedy))] == [
        c.ids for c in flat(reference.generate(requests, greedy))
    ]
    for own, other in zip(engine.score(scored, temperature=0.7), reference.score(scored, temperature=0.7), strict=True):
        assert own.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_stream_gives_what_generate_gives(open_engine, base_vlm, problems, recipe):
    """Batch by batch, in order, an empty one too, and with another request in between."""
    engine = open_engine(base_vlm, 3)
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, problem) for problem in problems[:6]]
    batches = [
        Batch([Request(prompt, 2) for prompt in prompts[:3]], Sampling(20, 0.7, seed=1)),
        Batch([], Sampling(3)),
        Batch([Request(prompts[3], 2)], Sampling(9, temperature=0)),
        Batch([Request(prompt) for prompt in prompts[2:]], Sampling(30, 1.0, seed=2)),
    ]
    expected = [engine.generate(batch.requests, batch.sampling) for batch in batches]
    assert len({tuple(completion.ids) for groups in expected for completion in flat(groups)}) > 9
    for groups, wanted in zip(engine.stream(iter(batches)), expected, strict=True):
        assert [[completion.ids for completion in group] for group in groups] == [
            [completion.ids for completion in group] for group in wanted
        ]
        for completion, other in zip(flat(groups), flat(wanted), strict=True):
            assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        between = engine.generate(batches[3].requests[:1], batches[3].sampling)
        assert between[0][0].ids == expected[3][0][0].ids


def test_no_requests_give_no_results(open_engine, tiny_vlm):
    engine = open_engine(tiny_vlm, 2)
    assert engine.generate([], Sampling(3)) == []
    assert engine.score([], temperature=1.0) == []
