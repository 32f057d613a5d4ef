"""Attention over a packed row: many continuations of the same tokens, each token attending to its own past only, which
may lie in a cache.

transformers' own attention is used for rows that are not packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.model.key_value_cache import CachedPass

TREE_ATTENTION = "difference_feedback_tree"


@dataclass(frozen=True)
class Tree:
    """A packed row as segments of consecutive tokens, in the order of the row.

    Each is the path of segments, as (start, stop), that its last token attends to, from the root to itself.
    """

    paths: Sequence[Sequence[tuple[int, int]]]


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree | None = None,
    cached: CachedPass | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, heads, L, D), key and value (1, kv heads, L, D) -> (1, L, heads, D).

    With a `tree`, each segment attends to its path; the work is that of the separate rows without their repeats. With
    `cached` what is read is kept, and where there is no tree attends to what was kept before.
    """
    if tree is None and cached is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # Under autocast the rotary embedding leaves float32; attention itself computes in the layers' type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if cached is not None:
        cached.keep(module.layer_idx, key, value)
        if tree is None:
            return cached.attend(module.layer_idx, query, scaling), None
    assert tree is not None
    return _tree_attention(query, key, value, tree, scaling), None


def _tree_attention(query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    # Cut once: the gradient of each slice of the whole row would be as long as the row.
    own = [path[-1] for path in tree.paths]
    queries, keys, values = (whole.split([stop - start for start, stop in own], dim=2) for whole in (query, key, value))
    number = {span: i for i, span in enumerate(own)}
    outputs = []
    for query_own, path in zip(queries, tree.paths, strict=True):
        seen = [number[span] for span in path]
        keys_seen = torch.cat([keys[i] for i in seen], dim=2)
        values_seen = torch.cat([values[i] for i in seen], dim=2)
        causal = causal_lower_right(query_own.shape[2], keys_seen.shape[2])
        outputs.append(
            scaled_dot_product_attention(
                query_own, keys_seen, values_seen, attn_mask=causal, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def use_tree_attention(model: Any) -> None:
    """Let the text model take packed rows, where it has transformers' own attention, full context in every layer and
    no dropout in it."""
    config = model.config.get_text_config()
    plain = config._attn_implementation == "sdpa" and not getattr(config, "attention_dropout", 0)
    if plain and layer_kinds(config) == {"full_attention"}:
        names = [name for name in model.config.sub_configs if getattr(model.config, name) is config]
        model.set_attn_implementation(dict.fromkeys(names, TREE_ATTENTION))


def layer_kinds(text_config: Any) -> set[str]:
    """What its layers are, in the words of `layer_types`; a model without that field, as Mistral, has one kind."""
    window = getattr(text_config, "use_sliding_window", True) and getattr(text_config, "sliding_window", None)
    return set(getattr(text_config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])


def takes_trees(model: Any) -> bool:
    """Whether `use_tree_attention` found a text model for it."""
    return model.config.get_text_config()._attn_implementation == TREE_ATTENTION


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
