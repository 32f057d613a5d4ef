"""The marked tokens of an error and its repair, as the recipe wants them (eq. 8). Axis: T tokens of one response."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from stages.core.alignment import Mask, difference_masks
from stages.core.masks import step_ids, step_mask
from stages.model.codec import Codec
from stages.sections import MasksSection


def hard_masks(
    section: MasksSection, codec: Codec, error_ids: Sequence[int], repair_ids: Sequence[int]
) -> tuple[Mask, Mask]:
    """The hard masks of error and repair, by token or by step."""
    masks = difference_masks(
        error_ids,
        repair_ids,
        align=section.align,
        anchor_gaps=section.anchor_gaps,
        truncate=section.truncate,
    )
    return _by_step(section, codec, masks.error_T, error_ids), _by_step(section, codec, masks.repair_T, repair_ids)


def marked_texts(codec: Codec, ids: Sequence[int], mask_T: Mask) -> list[str]:
    """The text of every run of marked tokens."""
    runs = groupby(zip(mask_T.tolist(), ids, strict=True), key=lambda token: token[0])
    return [codec.decode([token for _, token in run]) for marked, run in runs if marked]


def _by_step(section: MasksSection, codec: Codec, mask_T: Mask, ids: Sequence[int]) -> Mask:
    if section.granularity == "token":
        return mask_T
    return step_mask(mask_T, step_ids(codec.token_texts(ids), section.step_end))
