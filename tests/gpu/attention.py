"""Attention of a packed row over the length of its responses: the tree's segments beside one dense mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stages.model.tree_attention import Tree, tree_attention

PROMPT, GROUP, HEADS, KV_HEADS, WIDTH = 1100, 8, 28, 4, 128
"""One layer of Qwen2.5-VL-7B."""
TOLERANCE = 0.02
"""Of outputs of about 1 in bfloat16."""


def attention() -> Iterator[Line]:
    for length in (300, 1000, 2000, 4000):
        yield from _at(length)


def _at(length: int) -> Iterator[Line]:
    tree, part = _tree(length), f"row {PROMPT + GROUP * length}"
    query, key, value = _row(PROMPT + GROUP * length)
    sides: dict[str, Callable[[], Tensor]] = {
        "tree": lambda: tree_attention(None, query, key, value, None, tree=tree)[0].transpose(1, 2),
        "dense mask": lambda: _dense(query, key, value, tree),
    }
    with torch.no_grad():
        off = (sides["tree"]() - sides["dense mask"]()).abs().max().item()
    yield Line(part, "tree against dense mask, largest difference", off, "", off <= TOLERANCE)
    for name, side in sides.items():
        with empty_gpu():
            taken, peak = seconds_of(lambda: side().sum().backward()), peak_gib()  # noqa: B023, called at once
        yield Line(part, f"{name}: forward and backward", taken * 1e3, "ms")
        yield Line(part, f"{name}: peak memory", peak, "GiB")


def _tree(length: int) -> Tree:
    starts = range(PROMPT, PROMPT + GROUP * length, length)
    return Tree([[(0, PROMPT)], *([(0, PROMPT), (start, start + length)] for start in starts)])


def _row(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = (HEADS, KV_HEADS, KV_HEADS)
    made = (torch.randn(1, h, tokens, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in heads)
    query, key, value = made
    return query, key, value


def _dense(query: Tensor, key: Tensor, value: Tensor, tree: Tree) -> Tensor:
    tokens = query.shape[2]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device="cuda")
    for path in tree.paths:
        start, stop = path[-1]
        for seen_start, seen_stop in path[:-1]:
            mask[start:stop, seen_start:seen_stop] = True
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool, device="cuda").tril()
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
