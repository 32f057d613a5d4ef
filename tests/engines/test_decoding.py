"""Our decoding loop: the same distribution as plain sampling and the same tokens as transformers' own, in fewer passes.

Axes: T tokens of a response, V vocabulary.
"""

import logging
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from noise import noisy
from stages.artifacts.problems import Problem, Video
from stages.engines.decoding import Decoder, Numbered
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import ModelError
from stages.model.batches import encode_prompt, prompt_batch
from stages.model.key_value_cache import SLOT_MULTIPLE, CachedPass, KeyValueCache
from stages.model.loading import wrap_model
from stages.model.prompts import policy_prompt
from stages.sections import PromptSection


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def asked(request):
    """A model, and prompts with an image, with two, with none and with a video."""
    vlm = request.getfixturevalue(request.param)
    film = Video([noisy(56, 56, n) for n in range(5)], 3.0, "problem p")
    media = [((noisy(56, 28, 1),), None), ((noisy(28, 84, 2), noisy(28, 28, 3)), None), ((), None), ((), film)]
    return vlm, [
        policy_prompt(vlm.processor, PromptSection(), Problem.asking("Which? " * n, images, video))
        for n, (images, video) in enumerate(media)
    ]


@pytest.fixture(scope="module")
def base_prompts(base_vlm, problems, recipe):
    return [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in problems[:6]]


def decode(vlm, requests, sampling, *, rows=64, block=8):
    numbered = [Numbered(number, request) for number, request in enumerate(requests)]
    return Decoder(vlm, rows=rows, prompt_tokens=200, draft_block=block).generate(numbered, sampling)


def plain(vlm, requests, sampling, *, rows=64):
    numbered = [Numbered(number, request) for number, request in enumerate(requests)]
    return PlainGenerate(vlm, rows=rows).generate(numbered, sampling)


def ids_of(groups):
    return [[completion.ids for completion in group] for group in groups]


def changed(ids, *places):
    return [30 + place % 7 if place in places else token for place, token in enumerate(ids)]


@pytest.fixture
def passes():
    """A function: how many tokens each pass of a model's text part takes from now on, prompts apart."""
    hooks = []

    def watch(vlm):
        seen = []

        def see(_, __, kwargs):
            seen.append((kwargs["cached"].block is None, kwargs["input_ids"].numel()))

        hooks.append(vlm.model.base_model.register_forward_pre_hook(see, with_kwargs=True))
        return seen

    yield watch
    for hook in hooks:
        hook.remove()


def exact_distribution(vlm, prompt, allowed, length, temperature):
    """Probability of every response of at most `length` tokens, of a pass for each."""
    (end,) = vlm.end_ids
    others = [token for token in allowed if token != end]
    stopped = [(*ids, end) for size in range(length) for ids in product(others, repeat=size)]
    responses = [*stopped, *product(others, repeat=length)]
    scores = TransformersEngine(vlm).score([ScoreRequest(prompt, ids) for ids in responses], temperature=temperature)
    return dict(zip(responses, np.exp([sum(score.logprobs) for score in scores]), strict=True))


@pytest.mark.parametrize("draft", ["right", "wrong", "empty", "longer", "shorter"])
@pytest.mark.parametrize("temperature", [pytest.param(0.7, marks=pytest.mark.slow), 1.5])
def test_the_distribution_is_that_of_plain_sampling(tiny_vlm, draft, temperature):
    """Three tokens and the end, three long at most: 40 responses, each as often as teacher forcing says."""
    allowed = [30, 31, 32, tiny_vlm.end_ids[0]]
    vocabulary = tiny_vlm.model.config.get_text_config().vocab_size
    vlm = replace(tiny_vlm, banned_ids=tuple(sorted(set(range(vocabulary)) - set(allowed))))
    prompt = policy_prompt(vlm.processor, PromptSection(), Problem.asking("Which?", [noisy(56, 28, 1)]))
    expected = exact_distribution(vlm, prompt, allowed, 3, temperature)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    likeliest = max(expected, key=expected.get)
    drafts = {"right": likeliest, "wrong": [33] * 3, "empty": [], "longer": [30] * 9, "shorter": likeliest[:1]}
    seed = 11 + list(drafts).index(draft)
    count = 6000
    (group,) = decode(vlm, [Request(prompt, count, drafts[draft])], Sampling(3, temperature, seed), rows=512, block=3)
    found = dict.fromkeys(expected, 0)
    for completion in group:
        found[tuple(completion.ids)] += 1
    rare = [ids for ids, chance in expected.items() if chance * count < 5]
    frequent = [ids for ids in expected if ids not in rare]
    bins = [*([ids] for ids in frequent), *([rare] if rare else [])]
    assert len(bins) > 8
    observed = [sum(found[ids] for ids in own) for own in bins]
    wanted = np.array([sum(expected[ids] for ids in own) for own in bins])
    assert chisquare(observed, wanted / wanted.sum() * count).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
def test_tokens_and_logprobs_are_those_of_transformers_own_loop(asked, temperature):
    vlm, prompts = asked
    sampling = Sampling(9, temperature, seed=4)
    requests = [Request(prompt, 1 + n) for n, prompt in enumerate(prompts)]
    expected = plain(vlm, requests, sampling)
    drafted = [replace(r, draft_ids=changed(g[0].ids, 3)) for r, g in zip(requests, expected, strict=True)]
    for own in (decode(vlm, requests, sampling), decode(vlm, drafted, sampling, rows=5, block=4)):
        assert ids_of(own) == ids_of(expected)
        for group, other in zip(own, expected, strict=True):
            for completion, reference in zip(group, other, strict=True):
                assert completion.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
                assert completion.finish_reason == reference.finish_reason


def test_a_draft_is_kept_as_far_as_it_is_likely(base_vlm, base_prompts):
    """Everywhere where anything is likely enough, and nowhere where certainty is needed."""
    sampling = Sampling(40, 1.0, seed=4)
    free = decode(base_vlm, [Request(prompt) for prompt in base_prompts], sampling)
    drafts = [changed(group[0].ids, 5, 6, 17) for group in free]
    requests = [Request(prompt, 2, draft) for prompt, draft in zip(base_prompts, drafts, strict=True)]
    drawn = ids_of(decode(base_vlm, requests, sampling))
    assert ids_of(decode(base_vlm, requests, replace(sampling, keep=1.0))) == drawn
    always = ids_of(decode(base_vlm, requests, replace(sampling, keep=1e-30)))
    for draft, group in zip(drafts, always, strict=True):
        kept = base_vlm.without_end(draft)[:40]
        assert [ids[: len(kept)] for ids in group] == [kept, kept]


@pytest.mark.parametrize("keep", [0.05, 0.3])
def test_what_is_kept_depends_on_no_block_and_no_loop(base_vlm, base_prompts, keep):
    sampling = Sampling(40, 1.0, seed=4, keep=keep)
    other = decode(base_vlm, [Request(prompt) for prompt in base_prompts], replace(sampling, seed=5))
    drafts = [changed(group[0].ids, 3, 9) for group in other]
    drafts[1], drafts[2] = [], drafts[2][:10] + drafts[2][14:]
    requests = [Request(prompt, 2, draft) for prompt, draft in zip(base_prompts, drafts, strict=True)]
    expected = ids_of(plain(base_vlm, requests, sampling))
    for block in (1, 2, 8, 64):
        assert ids_of(decode(base_vlm, requests, sampling, rows=5, block=block)) == expected


@pytest.mark.parametrize("block", [1, 2, 8, 64])
def test_greedy_tokens_are_those_that_transformers_finds_by_itself(base_vlm, base_prompts, block):
    config = GenerationConfig(
        max_new_tokens=40, do_sample=False, suppress_tokens=list(base_vlm.banned_ids),
        eos_token_id=base_vlm.end_ids[0], pad_token_id=base_vlm.end_ids[0],
    )  # fmt: skip
    found = []
    for prompt in base_prompts:
        inputs = prompt_batch(base_vlm, [encode_prompt(base_vlm, prompt)])
        found.append(base_vlm.model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :])
    expected = [[row.tolist()] for row in found]
    drafts = [changed(rows[0], 5, 6, 17) for rows in expected]
    drafts[1], drafts[2] = [], drafts[2][:10] + drafts[2][14:]
    requests = [Request(prompt, 1, draft) for prompt, draft in zip(base_prompts, drafts, strict=True)]
    assert ids_of(decode(base_vlm, requests, Sampling(40, 0), block=block)) == expected


def test_a_response_depends_on_its_own_request_alone(base_vlm, base_prompts):
    """Not on what is sampled beside it, on how many rows there are, on its process, or on its draft."""
    sampling = Sampling(30, 1.0, seed=9)
    requests = [Request(prompt, 3) for prompt in base_prompts]
    together = ids_of(decode(base_vlm, requests, sampling))
    assert len({tuple(ids) for group in together for ids in group}) > 12
    for rows in (1, 4):
        assert ids_of(decode(base_vlm, requests, sampling, rows=rows)) == together
    decoder = Decoder(base_vlm, rows=64, prompt_tokens=200, draft_block=8)
    shares = [[Numbered(n, requests[n]) for n in range(start, 6, 2)] for start in (0, 1)]
    apart = [ids_of(decoder.generate(share, sampling)) for share in shares]
    assert [group for pair in zip(*apart, strict=True) for group in pair] == together
    more = [replace(request, n=5, draft_ids=together[n][0]) for n, request in enumerate(requests)]
    assert [group[:3] for group in ids_of(decode(base_vlm, more, sampling))] == together
    assert ids_of(decode(base_vlm, requests, replace(sampling, seed=10))) != together


def test_logprobs_of_drafted_responses_are_those_of_teacher_forcing(base_vlm, base_prompts):
    first = decode(base_vlm, [Request(prompt) for prompt in base_prompts], Sampling(40, 0.7, seed=1))
    requests = [
        Request(prompt, 4, changed(group[0].ids, 4, 11, 12)) for prompt, group in zip(base_prompts, first, strict=True)
    ]
    groups = decode(base_vlm, requests, Sampling(40, 0.7, seed=2), rows=7)
    asked_for = [(request.prompt, c) for request, group in zip(requests, groups, strict=True) for c in group]
    scores = TransformersEngine(base_vlm).score([ScoreRequest(p, c.ids) for p, c in asked_for], temperature=0.7)
    for (_, completion), score in zip(asked_for, scores, strict=True):
        assert completion.logprobs == pytest.approx(score.logprobs, abs=1e-4)


def test_a_response_ends_inside_a_block_at_an_end_token_and_at_the_limit(base_vlm, base_prompts):
    greedy = Sampling(60, 0)
    ((whole,),) = decode(base_vlm, [Request(base_prompts[0])], greedy)
    (end,) = base_vlm.end_ids
    assert whole.ids[-1] == end
    draft = [*whole.ids, *whole.ids]
    for block in (5, len(whole.ids) + 9):
        ((own,),) = decode(base_vlm, [Request(base_prompts[0], 1, draft)], greedy, block=block)
        assert (own.ids, own.finish_reason) == (whole.ids, "stop")
        # The draft goes on where the response ends.
        further = [*whole.ids[:-1], 40, 41, 42]
        ((own,),) = decode(base_vlm, [Request(base_prompts[0], 1, further)], greedy, block=block)
        assert (own.ids, own.finish_reason) == (whole.ids, "stop")
        ((cut,),) = decode(base_vlm, [Request(base_prompts[0], 1, draft)], Sampling(7, 0), block=block)
        assert (cut.ids, cut.finish_reason) == (whole.ids[:7], "length")
        assert len(cut.logprobs) == 7


def test_a_right_draft_costs_a_pass_a_block_and_a_prompt_is_read_once(base_vlm, base_prompts, passes):
    prompt = base_prompts[0]
    ((whole, *_),) = decode(base_vlm, [Request(prompt)], Sampling(60, 0))
    seen = passes(base_vlm)
    decode(base_vlm, [Request(prompt, 1, whole.ids)], Sampling(60, 0), block=8)
    assert [tokens for is_prompt, tokens in seen if not is_prompt] == [8] * (len(whole.ids) // 8) + [
        rest for rest in [len(whole.ids) % 8] if rest
    ]
    seen.clear()
    decode(base_vlm, [Request(prompt, 6)], Sampling(5, 1.0, seed=0))
    assert [tokens for is_prompt, tokens in seen if is_prompt] == [len(encode_prompt(base_vlm, prompt).ids) - 1]


def test_rows_that_have_ended_cost_nothing_and_make_room(base_vlm, base_prompts, passes):
    seen = passes(base_vlm)
    groups = decode(base_vlm, [Request(prompt, 4) for prompt in base_prompts], Sampling(60, 1.0, seed=5), rows=8)
    lengths = [len(completion.ids) for group in groups for completion in group]
    assert len(set(lengths)) > 4
    decoding = [tokens for is_prompt, tokens in seen if not is_prompt]
    assert sum(decoding) == sum(lengths)
    assert max(decoding) == 8
    # Three batches of eight, each waiting for its longest, would take more passes.
    assert len(decoding) < sum(max(lengths[start : start + 8]) for start in (0, 8, 16))


def test_what_was_rejected_is_written_over(base_vlm, base_prompts, monkeypatch):
    """A pass reads no more slots than the row has tokens, and the block that is verified."""
    read = []
    own = KeyValueCache.read

    def spy(cache, layer, rows, slots):
        read.append(slots)
        return own(cache, layer, rows, slots)

    monkeypatch.setattr(KeyValueCache, "read", spy)
    wrong = [30] * 60
    ((completion,),) = decode(base_vlm, [Request(base_prompts[0], 1, wrong)], Sampling(40, 1.0, seed=1), block=8)
    most = len(encode_prompt(base_vlm, base_prompts[0]).ids) + len(completion.ids) + 8
    assert max(read) <= -(-most // SLOT_MULTIPLE) * SLOT_MULTIPLE


@pytest.mark.parametrize(
    "edit",
    [
        lambda ids: [*ids[:12], 41, 42, 43, 44, 45, *ids[12:]],
        lambda ids: ids[:12] + ids[17:],
        lambda ids: changed(ids, 12, 13, 14),
        lambda ids: [*ids[:12], *ids[8:]],
    ],
    ids=["too much", "left out", "replaced", "said twice"],
)
def test_a_draft_is_found_again_behind_what_differs(base_vlm, base_prompts, passes, edit):
    greedy = Sampling(60, 0)
    ((whole,),) = decode(base_vlm, [Request(base_prompts[0])], greedy)
    assert len(whole.ids) > 30
    seen = passes(base_vlm)
    ((own,),) = decode(base_vlm, [Request(base_prompts[0], 1, edit(whole.ids))], greedy, block=8)
    assert own.ids == whole.ids
    decoding = [tokens for is_prompt, tokens in seen if not is_prompt]
    # Ten passes more than without the edit would mean that the rest was written token by token.
    assert len(decoding) < len(whole.ids) / 8 + 10


def test_memory_grows_while_rows_are_in_it(base_vlm, base_prompts, monkeypatch):
    sampling = Sampling(40, 1.0, seed=3)
    requests = [Request(prompt, 2) for prompt in base_prompts]
    expected = ids_of(decode(base_vlm, requests, sampling))
    monkeypatch.setattr("stages.engines.decoding.FIRST_SLOTS", 1)
    assert ids_of(decode(base_vlm, requests, sampling, rows=3)) == expected


def test_other_attention_is_left_to_transformers_loop(tiny_vlm, unwrapped, caplog):
    unwrapped.set_attn_implementation("eager")
    requests = [Request(which(tiny_vlm, n), 2, [30, 31]) for n in (1, 3)]
    with caplog.at_level(logging.INFO, "stages.engines.decoding_check"):
        found = TransformersEngine(wrap_model(unwrapped, tiny_vlm.processor)).generate(requests, Sampling(8, seed=1))
    assert "transformers' own generate, its attention takes no packed rows" in caplog.text
    assert ids_of(found) == ids_of(decode(tiny_vlm, requests, Sampling(8, seed=1)))


def which(vlm, repeats):
    return policy_prompt(vlm.processor, PromptSection(), Problem.asking("Which? " * repeats, [noisy(56, 28, repeats)]))


def test_a_loop_that_is_off_is_found_out(tiny_vlm, caplog, monkeypatch):
    """Here its attention is too flat by a little."""
    own = CachedPass.attend
    monkeypatch.setattr(CachedPass, "attend", lambda cached, layer, query, *rest: own(cached, layer, query / 2, *rest))
    requests = [Request(which(tiny_vlm, 2), 2)]
    engine = TransformersEngine(tiny_vlm)
    with caplog.at_level(logging.WARNING, "stages.engines.decoding_check"):
        found = engine.generate(requests, Sampling(8, seed=1))
    assert "transformers' own generate, our loop is off by" in caplog.text
    assert ids_of(found) == ids_of(plain(tiny_vlm, requests, Sampling(8, seed=1)))


@pytest.mark.parametrize("loop", [decode, plain])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(tiny_vlm, copy_of, loop):
    diverged = copy_of(tiny_vlm)
    for name, parameter in diverged.model.named_parameters():
        if name.endswith("language_model.norm.weight"):
            parameter.data.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(ModelError, match="its logits hold NaN or infinity"):
        loop(diverged, [Request(which(tiny_vlm, 1))], Sampling(3))
