"""Attention of a packed row over the length of its responses: the tree's segments beside one dense mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from measured import Line, device, empty_gpu, peak_gib, seconds_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stages.model.tree_attention import Tree, tree_attention

TOLERANCE = 0.02
"""Of outputs of about 1 in bfloat16."""


class Layer(NamedTuple):
    """A layer's attention over one prompt and a group of responses, of each of the lengths."""

    prompt: int
    group: int
    heads: int
    kv_heads: int
    width: int
    lengths: Sequence[int]

    def tokens(self, length: int) -> int:
        return self.prompt + self.group * length


def attention(layer: Layer) -> Iterator[Line]:
    for length in layer.lengths:
        yield from _at(layer, length)


def attention_gib(layer: Layer) -> float:
    """Of the longest row: the dense mask, of a byte and of bfloat16, and some ten times queries, keys and values."""
    tokens = layer.tokens(max(layer.lengths))
    return (3 * tokens**2 + 10 * 2 * tokens * layer.width * (layer.heads + 2 * layer.kv_heads)) / 2**30


def _at(layer: Layer, length: int) -> Iterator[Line]:
    tree, part = _tree(layer, length), f"row {layer.tokens(length)}"
    query, key, value = _row(layer, layer.tokens(length))
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


def _tree(layer: Layer, length: int) -> Tree:
    prompt = (0, layer.prompt)
    starts = range(layer.prompt, layer.tokens(length), length)
    return Tree([[prompt], *([prompt, (start, start + length)] for start in starts)])


def _row(layer: Layer, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    made = (
        torch.randn(1, heads, tokens, layer.width, device=device(), dtype=torch.bfloat16, requires_grad=True)
        for heads in (layer.heads, layer.kv_heads, layer.kv_heads)
    )
    query, key, value = made
    return query, key, value


def _dense(query: Tensor, key: Tensor, value: Tensor, tree: Tree) -> Tensor:
    tokens = query.shape[2]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device=query.device)
    for path in tree.paths:
        start, stop = path[-1]
        for seen_start, seen_stop in path[:-1]:
            mask[start:stop, seen_start:seen_stop] = True
        mask[start:stop, start:stop] = mask.new_ones(stop - start, stop - start).tril()
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
