"""Sides without gates that put a group into one row: without padding, and with the prompt read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from prefix_grouper import PrefixGrouper
from prefix_grouper.utils.register_transformers import register_attention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from training_step_case import TEMPERATURE, Case
from training_step_sides import PlainLoop
from transformers import AttentionInterface

from stages.training.trainer import TrainingRow

VARLEN = "bench_varlen"
LOWER_RIGHT = "bench_lower_right"


class OneRow(PlainLoop):
    """The text model's attention is the side's; the head reads response positions alone, a response after the other."""

    attention: str

    def __init__(self, case: Case, rows_at_once: int, *, checkpointing: bool = False) -> None:
        super().__init__(case, rows_at_once, checkpointing=checkpointing)
        self.model.set_attn_implementation({"text_config": self.attention})

    def _positions(self, responses: Sequence[int]) -> Tensor:
        """Rotary positions (3, L) of the prompt and the longest of the responses after it, on the CPU."""
        prompt, longest = self.case.prompt, max(responses)
        ids, types = (torch.tensor([values + [0] * longest]) for values in (prompt.ids, prompt.token_types))
        grid = prompt.vision.get("image_grid_thw")
        return self.model.base_model.get_rope_index(ids, types, image_grid_thw=grid)[0][:, 0]

    def _hidden(self, ids: Sequence[int], positions_AL: Tensor, images: int, **kwargs: Any) -> Tensor:
        """Hidden states (1, L, H) of a row with so many copies of the prompt's image."""
        device = self.vlm.device
        vision = {name: torch.cat([value] * images).to(device) for name, value in self.case.prompt.vision.items()}
        output = self.model.base_model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=positions_AL[:, None].to(device),
            attention_mask={"full_attention": None},
            use_cache=False,
            **vision,
            **kwargs,
        )
        return output.last_hidden_state

    def _head(self, hidden_TH: Tensor, row: TrainingRow) -> Tensor:
        logits_TV = self.model.get_output_embeddings()(hidden_TH).float() / TEMPERATURE
        logits_TV[:, self.banned_ids] = float("-inf")
        return -cross_entropy(logits_TV, torch.tensor(row.ids, device=logits_TV.device), reduction="none")


class UnpaddedRow(OneRow):
    """Every response behind its own copy of the prompt, each such sequence attending within itself."""

    attention = VARLEN

    def _logprobs(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        prompt = self.case.prompt.ids
        lengths = [len(prompt) + len(row.ids) for row in rows]
        positions_AL = self._positions([len(row.ids) for row in rows])
        hidden_1LH = self._hidden(
            [token for row in rows for token in (*prompt, *row.ids)],
            torch.cat([positions_AL[:, :length] for length in lengths], dim=1),
            images=len(rows),
            lengths=lengths,
        )
        own = hidden_1LH[0].split(lengths)
        return [self._head(hidden_LH[len(prompt) - 1 : -1], row) for hidden_LH, row in zip(own, rows, strict=True)]


class PrefixGrouping(OneRow):
    """The prompt once, the responses behind it: arXiv 2506.05433 by its authors' package.

    In each layer the package lets the prompt attend to itself, and the responses, padded, to the prompt's keys and
    values, repeated for each of them, and to their own.
    """

    attention = "prefix_grouper_attention"

    def __init__(self, case: Case, rows_at_once: int, *, checkpointing: bool = False) -> None:
        register_attention()
        super().__init__(case, rows_at_once, checkpointing=checkpointing)

    def _logprobs(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        prompt, lengths = self.case.prompt.ids, [len(row.ids) for row in rows]
        grouper = PrefixGrouper([[len(prompt), *lengths]], device=self.vlm.device)
        positions_AL = self._positions(lengths)
        after_AT = positions_AL[:, len(prompt) :]
        hidden_1LH = self._hidden(
            [*prompt, *(token for row in rows for token in row.ids)],
            torch.cat([positions_AL[:, : len(prompt)], *(after_AT[:, :length] for length in lengths)], dim=1),
            images=1,
            prefix_grouper=grouper,
            prefix_grouper_attn_func=LOWER_RIGHT,
        )
        _, _, hidden_BTH, _ = grouper.split_output(hidden_1LH, include_prefix_last=1)
        return [self._head(hidden_TH[: len(row.ids)], row) for hidden_TH, row in zip(hidden_BTH, rows, strict=True)]


def varlen_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    lengths: Sequence[int],
    scaling: float,
    **_rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: sequences of those lengths in one row, (1, heads, L, D) -> (1, L, heads, D).

    What flash attention's varlen kernel does on a GPU.
    """
    # Under autocast the rotary embedding leaves float32.
    parts = zip(*(whole.to(value.dtype).split(lengths, dim=2) for whole in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=True) for part in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def lower_right_attention(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, *, scaling: float, **_rest: Any
) -> tuple[Tensor, None]:
    """transformers' attention function for the package: the queries are the last of the keys, (B, heads, T, D).

    Padding, which `_mask` (B, L) tells, stands at the end, where no query that counts sees it.
    """
    causal = causal_lower_right(query.shape[2], key.shape[2])
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = scaled_dot_product_attention(query, key, value, attn_mask=causal, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(LOWER_RIGHT, lower_right_attention)
