"""Packed rows: what each token sees, where it stands, what is read where; and when rows are plain instead.

Axes: A position axes, L tokens of a row, N tokens that are read, B responses, T tokens of the longest.
"""

from collections import Counter
from itertools import groupby, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from readings import assert_read_as_plain, encode, noisy
from stages.model.batches import EncodedPrompt, response_batch
from stages.model.layout import (
    Reading,
    packed_layout,
    packed_micro_batches,
    padded_layout,
    padded_micro_batches,
)
from stages.model.logprobs import LogprobReader
from stages.model.tree_attention import Tree, tree_attention

LONGEST = 7


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def vlm(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def prompts(vlm):
    """Two images of other shapes; one; none; and the second prompt's tokens with another image behind them."""
    made = [
        encode(vlm, "Which is it?", noisy(84, 28, 0), noisy(56, 84, 1)),
        encode(vlm, "Why?", noisy(56, 56, 2)),
        encode(vlm, "What is the sum?"),
        encode(vlm, "Why?", noisy(56, 56, 3)),
    ]
    assert made[1].ids == made[3].ids
    return made


@pytest.fixture(scope="module")
def own_positions(vlm, prompts):
    """Rotary positions (A, L) that the model itself gives each prompt with a response behind it, in a row alone."""
    rotary = vlm.model.get_decoder().rotary_emb
    seen = []
    hook = rotary.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([*args, *kwargs.values()][1]), with_kwargs=True
    )
    for prompt in prompts:
        with torch.no_grad():
            vlm.model(**response_batch(vlm, [prompt], [[20] * LONGEST]).inputs, use_cache=False)
    hook.remove()
    return [positions.flatten(0, -2) for positions in seen]


def flags(length):
    return st.none() | st.lists(st.booleans(), min_size=length, max_size=length).map(
        lambda values: np.array(values, bool)
    )


# Three tokens: most responses share a beginning, some are another's, and some stand twice.
few_tokens = st.lists(st.sampled_from([20, 21, 22]), min_size=1, max_size=LONGEST)
responses = few_tokens.flatmap(lambda ids: st.tuples(st.integers(0, 3), st.just(ids), flags(len(ids)), flags(len(ids))))
groups = st.lists(responses, min_size=1, max_size=9)


def reading_of(prompts, response):
    index, *rest = response
    return Reading(prompts[index], *rest)


def inputs_of(reading):
    """How many of a response's tokens a pass needs: those before the last that is read."""
    read = [t for t in range(len(reading.ids)) if reading.read_T is None or reading.read_T[t]]
    return max(read, default=0)


def visible(layout):
    """Of each slot of a packed row, the slots that its token attends to, by the tree's paths."""
    seen = {}
    for path in layout.inputs["tree"].paths:
        *before, (start, stop) = path
        for slot in range(start, stop):
            assert slot not in seen
            seen[slot] = [i for first, last in before for i in range(first, last)] + list(range(start, slot + 1))
    assert list(seen) == list(range(layout.tokens))
    return list(seen.values())


def beginnings(layout, group):
    """Of each slot, the number of its prompt and the tokens up to it; prompts come in the order of their responses."""
    ids = layout.inputs["input_ids"][0].tolist()
    seen = visible(layout)
    order = dict.fromkeys(index for index, *_ in group)
    prompt_at = dict(zip(sorted({slots[0] for slots in seen}), order, strict=True))
    return [(prompt_at[slots[0]], tuple(ids[i] for i in slots)) for slots in seen]


def test_a_token_sees_its_own_prompt_and_its_own_ancestors_alone(vlm, prompts):
    first, second = prompts[:2]
    readings = [
        Reading(first, [5, 6, 7, 8]),
        Reading(second, [5, 6, 9]),
        Reading(first, [5, 6, 9, 9]),
        Reading(first, [9]),
    ]
    row = packed_layout(vlm, readings).inputs
    # The last token of a response is read, but nothing is read behind it.
    assert row["input_ids"].tolist() == [[*first.ids, 5, 6, 7, 9, *second.ids, 5, 6]]
    p, q = len(first.ids), len(second.ids)
    slots = visible(packed_layout(vlm, readings))
    assert slots[: p + 2] == [list(range(i + 1)) for i in range(p + 2)]
    assert slots[p + 2] == list(range(p + 3))
    assert slots[p + 3] == [*range(p + 2), p + 3]
    assert slots[p + 4 :] == [list(range(p + 4, i + 1)) for i in range(p + 4, p + q + 6)]


@settings(max_examples=30, deadline=None)
@given(group=groups)
def test_every_beginning_stands_once_and_nothing_else_does(vlm, prompts, group):
    readings = [reading_of(prompts, response) for response in group]
    layout = packed_layout(vlm, readings)
    expected = set()
    for (index, *_), reading in zip(group, readings, strict=True):
        whole = (*prompts[index].ids, *reading.ids[: inputs_of(reading)])
        expected |= {(index, whole[: i + 1]) for i in range(len(whole))}
    assert Counter(beginnings(layout, group)) == Counter(expected)
    # Segments end at branches alone: each is an attention call of its own.
    assert len(layout.inputs["tree"].paths) <= 2 * len(group) + len({index for index, *_ in group})
    assert layout.tokens == layout.slots == layout.inputs["input_ids"].numel() == len(expected)


@settings(max_examples=30, deadline=None)
@given(group=groups)
def test_positions_are_those_that_the_model_gives_a_row_alone(vlm, prompts, own_positions, group):
    readings = [reading_of(prompts, response) for response in group]
    layout = packed_layout(vlm, readings)
    positions_AL = layout.inputs["position_ids"].flatten(0, -2)
    expected = [own_positions[index][:, len(text) - 1] for index, text in beginnings(layout, group)]
    assert torch.equal(positions_AL, torch.stack(expected, dim=1))


@settings(max_examples=30, deadline=None)
@given(group=groups)
def test_every_token_is_read_where_its_own_past_ends(vlm, prompts, group):
    readings = [reading_of(prompts, response) for response in group]
    layout = packed_layout(vlm, readings)
    row = beginnings(layout, group)
    expected = [
        (index, tuple(ids[:t]), token, graph_T is None or bool(graph_T[t]))
        for index, ids, read_T, graph_T in group
        for t, token in enumerate(ids)
        if read_T is None or read_T[t]
    ]
    assert len(layout.where_N) == len(expected)
    for u, (index, past, token, _) in zip(layout.where_N.tolist(), expected, strict=True):
        assert row[layout.source_U[u]] == (index, (*prompts[index].ids, *past))
        assert layout.target_U[u] == token
    # What is the same token after the same past is made once, with a graph if one of them wants it.
    same = sorted(expected, key=lambda e: e[:3])
    assert len(layout.target_U) == len(layout.source_U) == len({e[:3] for e in expected})
    wanted = {key: any(e[3] for e in some) for key, some in groupby(same, key=lambda e: e[:3])}
    for u, (*key, _) in zip(layout.where_N.tolist(), expected, strict=True):
        assert layout.graph_U[u] == wanted[tuple(key)]


def test_each_image_goes_in_once_in_the_order_of_the_row(vlm, prompts):
    readings = [Reading(prompts[i], ids) for i, ids in ((1, [20]), (0, [20, 21]), (2, [20]), (1, [21, 20]), (0, [22]))]
    inputs = packed_layout(vlm, readings).inputs
    for name in prompts[0].vision:
        assert torch.equal(inputs[name], torch.cat([prompts[1].vision[name], prompts[0].vision[name]]))
    placeholder = vlm.model.config.image_token_id
    expected = sum(prompt.ids.count(placeholder) for prompt in prompts[:2])
    assert inputs["input_ids"][0].tolist().count(placeholder) == expected > 4


def test_a_row_without_images_has_none(vlm, prompts):
    assert packed_layout(vlm, [Reading(prompts[2], [20, 21])]).inputs.keys() == {
        "input_ids",
        "position_ids",
        "attention_mask",
        "tree",
    }


def test_padded_rows_read_every_token_where_its_own_past_ends(vlm, prompts):
    readings = [
        Reading(prompts[0], [20, 21, 22]),
        Reading(prompts[2], [21]),
        Reading(prompts[2], [20, 20, 21, 22, 20], np.array([0, 1, 0, 1, 0], bool)),
        Reading(prompts[1], [20, 21], np.zeros(2, bool)),
    ]
    layout = padded_layout(vlm, readings)
    ids_BL, mask_BL = layout.inputs["input_ids"], layout.inputs["attention_mask"].bool()
    expected = [(0, (20, 21, 22), 0), (0, (20, 21, 22), 1), (0, (20, 21, 22), 2)]
    expected += [(1, (21,), 0), (2, (20, 20, 21, 22, 20), 1), (2, (20, 20, 21, 22, 20), 3)]
    assert len(layout.where_N) == len(expected)
    for u, (row, ids, t) in zip(layout.where_N.tolist(), expected, strict=True):
        source = layout.source_U[u].item()
        assert source // ids_BL.shape[1] == row
        upto = slice(0, source % ids_BL.shape[1] + 1)
        assert ids_BL[row, upto][mask_BL[row, upto]].tolist() == [*readings[row].prompt.ids, *ids[:t]]
        assert layout.target_U[u] == ids[t]
    # Nothing behind the last token that is read, and not that token either.
    inputs = [2, 0, 3, 0]
    assert mask_BL.sum(-1).tolist() == [len(r.prompt.ids) + n for r, n in zip(readings, inputs, strict=True)]
    assert (layout.tokens, layout.slots) == (mask_BL.sum(), mask_BL.numel())
    assert mask_BL.shape == (4, max(len(prompt.ids) for prompt in prompts) + 3)


@settings(max_examples=12, deadline=None)
@given(group=groups)
def test_packed_logprobs_are_those_of_a_row_alone(vlm, prompts, reader, group):
    readings = [reading_of(prompts, response) for response in group]
    assert reader.packed
    assert "tree" in reader.layout(readings).inputs
    assert_read_as_plain(vlm, reader, readings)


@pytest.fixture(scope="module")
def reader(vlm):
    return LogprobReader(vlm)


def test_closed_rows_leave_a_gradient_of_zero(vlm, copy_of, prompts):
    """A micro-batch in which nothing is read, or nothing with a graph, can be trained on all the same."""
    own = copy_of(vlm)
    reader = LogprobReader(own)
    closed = np.zeros(2, bool)
    for reading in (Reading(prompts[1], [20, 21], closed), Reading(prompts[1], [20, 21], None, closed)):
        own.model.zero_grad()
        reader.read([reading], temperature=1.0).logprobs_BT.sum().backward()
        assert not any(p.grad.any() for p in own.model.parameters() if p.grad is not None)


def test_tokens_without_a_graph_have_their_logprob_but_no_gradient(vlm, copy_of, prompts):
    own = copy_of(vlm)
    reader = LogprobReader(own)
    ids = [20, 21, 22, 20]
    only = np.array([0, 0, 1, 0], bool)
    weights_T = torch.tensor([0.3, -2.0, 0.7, 5.0])

    def gradient(reading):
        own.model.zero_grad()
        logprobs_T = reader.read([reading], temperature=1.0).logprobs_BT[0]
        (weights_T * logprobs_T).sum().backward()
        return logprobs_T.detach(), own.model.get_output_embeddings().weight.grad.clone()

    expected_T, _ = gradient(Reading(prompts[1], ids))
    _, expected = gradient(Reading(prompts[1], ids, only))
    logprobs_T, found = gradient(Reading(prompts[1], ids, None, only))
    torch.testing.assert_close(logprobs_T, expected_T, atol=1e-5, rtol=0)
    assert expected.norm() > 0.1
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("key_heads", [4, 2])
def test_tree_attention_is_dense_attention_under_the_tree_s_mask(key_heads):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 12, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, key_heads, key_heads)
    )
    paths = [
        [(0, 3)],
        [(0, 3), (3, 5)],
        [(0, 3), (3, 5), (5, 6)],
        [(0, 3), (3, 5), (6, 8)],
        [(0, 3), (8, 9)],
        [(9, 12)],
    ]
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for slot, slots in enumerate(visible(SimpleNamespace(inputs={"tree": Tree(paths)}, tokens=12))):
        mask[slot, slots] = True
    found, _ = tree_attention(None, query, key, value, None, tree=Tree(paths), scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for own, dense in zip(
        torch.autograd.grad((found.transpose(1, 2) * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(own, dense)


# Prompts of text alone, of several lengths; layouts count their tokens.
texts_alone = st.lists(st.integers(1, 30), min_size=1, max_size=5).map(
    lambda lengths: [EncodedPrompt([10] * length, [0] * length, {}) for length in lengths]
)
batched = texts_alone.flatmap(
    lambda made: st.lists(
        few_tokens.flatmap(lambda ids: st.builds(Reading, st.sampled_from(made), st.just(ids), flags(len(ids)))),
        min_size=1,
        max_size=14,
    )
)


@settings(max_examples=40, deadline=None)
@given(readings=batched, spare=st.integers(-60, 3))
def test_packed_micro_batches_hold_the_budget_and_keep_groups_together(tiny_vlm, readings, spare):
    def tokens(members):
        return packed_layout(tiny_vlm, [readings[i] for i in members]).tokens

    budget = tokens(range(len(readings))) + spare
    batches = list(packed_micro_batches(readings, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(readings)))
    assert all(tokens(batch) <= budget for batch in batches if len(batch) > 1)
    for first, second in pairwise(batches):
        # A prompt stands in two batches only where its next response is too much for the first.
        prompt = readings[second[0]].prompt
        if any(readings[i].prompt is prompt for i in first):
            assert tokens([*first, second[0]]) > budget
    order = [id(readings[i].prompt) for batch in batches for i in batch]
    assert len(list(groupby(order))) == len(set(order))
    if spare >= 0:
        assert len(batches) == 1


@pytest.mark.parametrize("micro_batches", [packed_micro_batches, padded_micro_batches])
@pytest.mark.parametrize("budget", [1, 30, 60, 200])
def test_what_has_to_stay_together_does_whatever_the_budget(budget, micro_batches):
    """Three prompts of 10 tokens with two pairs each, the first of a pair sometimes longer, sometimes shorter."""
    rng = np.random.default_rng(4)
    made = [EncodedPrompt([10] * 10, [0] * 10, {}) for _ in range(3)]
    readings = [
        Reading(prompt, rng.integers(5, 9, rng.integers(1, 20)).tolist(), with_next=first)
        for prompt in made
        for first in (True, False) * 2
    ]
    batches = list(micro_batches(readings, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    for batch in batches:
        assert [i % 2 for i in batch] == [0, 1] * (len(batch) // 2)
        assert all(second == first + 1 for first, second in zip(batch[::2], batch[1::2], strict=True))
    assert {1: 6, 200: 1 if micro_batches is packed_micro_batches else 2}.get(budget, len(batches)) == len(batches)


# Of each row, the lengths of its prompt and its response.
shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=14)


def readings_of(rows):
    return [Reading(EncodedPrompt([10] * before, [0] * before, {}), [20] * length) for before, length in rows]


@settings(max_examples=30, deadline=None)
@given(rows=shapes, budget=st.integers(1, 300))
def test_padded_micro_batches_have_every_reading_once(rows, budget):
    batches = list(padded_micro_batches(readings_of(rows), budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    # Rows of a batch are of like lengths.
    lengths = [sum(rows[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths)


@settings(max_examples=30, deadline=None)
@example(rows=[(30, 2), (2, 30)], budget=80)
@example(rows=[(30, 1), (1, 31), (1, 31)], budget=70)
@given(rows=shapes, budget=st.integers(1, 300))
def test_padded_micro_batches_hold_the_budget_with_their_padding(tiny_vlm, rows, budget):
    readings = readings_of(rows)
    batches = list(padded_micro_batches(readings, budget))

    def slots(members):
        return padded_layout(tiny_vlm, [readings[i] for i in members]).slots

    assert all(slots(batch) <= budget for batch in batches if len(batch) > 1)
    # A batch ends only where the next row is too much.
    assert all(slots([*first, second[0]]) > budget for first, second in pairwise(batches))
