"""Where an erroneous response and its repair differ: edit script, cost (eq. 2), two-sided masks (eq. 8).

Axis: T tokens of one response; the error and its repair have a T each.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

try:
    import edlib
except ModuleNotFoundError:  # no wheel for this Python; rapidfuzz finds the same distance
    edlib = None
import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Editops, LCSseq, Levenshtein, Opcodes

Align: TypeAlias = Literal["levenshtein", "lcs"]
Truncate: TypeAlias = Literal["none", "error", "both"]
TokenIds: TypeAlias = Sequence[int] | NDArray[Any]
Ids: TypeAlias = NDArray[np.int64]
Symbols: TypeAlias = str | list[int]
Mask: TypeAlias = NDArray[np.bool_]

EDLIB_SYMBOLS = 256


class Edit(NamedTuple):
    """`error[i1:i2]` becomes `repair[j1:j2]`; tag is equal, replace, delete or insert."""

    tag: str
    i1: int
    i2: int
    j1: int
    j2: int


@dataclass(frozen=True)
class DifferenceMasks:
    """Eq. 8. `distance` counts the edits on the path taken; `cost` is eq. 2 whatever the path."""

    error_T: Mask
    repair_T: Mask
    distance: int
    cost: float


def difference_masks(
    error_ids: TokenIds,
    repair_ids: TokenIds,
    *,
    align: Align = "levenshtein",
    anchor_gaps: bool = True,
    truncate: Truncate = "none",
) -> DifferenceMasks:
    """Eq. 8: True at the error's substituted and deleted tokens, the repair's substituted and inserted ones.

    Our choices: where a block (a maximal run of edits) has no token on one side, `anchor_gaps` marks the
    token just after the gap there; `truncate` keeps only the first run of marked tokens, on the error's side
    or on both.

    Raises ValueError on an unknown option, or on ids that are not a flat sequence of token ids.
    """
    error_ids, repair_ids = _ids(error_ids), _ids(repair_ids)
    error_T, repair_T = np.zeros(len(error_ids), np.bool_), np.zeros(len(repair_ids), np.bool_)
    error, repair = _both_symbols(error_ids, repair_ids)
    distance = mark_differences(
        error, repair, error_T, repair_T, align=align, anchor_gaps=anchor_gaps, truncate=truncate
    )
    levenshtein = distance if align == "levenshtein" else _levenshtein(error_ids, repair_ids)
    return DifferenceMasks(error_T, repair_T, distance, _cost(levenshtein, len(error_ids), len(repair_ids)))


def mark_differences(
    error: Symbols,
    repair: Symbols,
    error_T: Mask,
    repair_T: Mask,
    *,
    align: Align,
    anchor_gaps: bool,
    truncate: Truncate,
) -> int:
    """The masks of `difference_masks`, set in arrays that are all False; the number of edits on the path.

    For pairs by the million: tokens and arrays may be slices of what many rows share (`symbols` makes the tokens,
    both sides in one call), and eq. 2 is not worked out. Raises ValueError on an unknown option.
    """
    if truncate not in ("none", "error", "both"):
        raise ValueError(f"truncate is {truncate!r}; use none, error or both")
    edits = _edits(error, repair, align)
    i = j = 0
    for next_i, next_j, equal in edits.as_matching_blocks():  # the last one is empty, at both ends
        if i < next_i or j < next_j:
            _mark(error_T, i, next_i, anchor_gaps)
            _mark(repair_T, j, next_j, anchor_gaps)
        i, j = next_i + equal, next_j + equal
    if truncate != "none":
        _keep_first_span(error_T)
    if truncate == "both":
        _keep_first_span(repair_T)
    return len(edits)


def symbols(ids: NDArray[np.integer[Any]]) -> Symbols:
    """Token ids as what rapidfuzz reads fastest: characters, or numbers where an id is beyond the last character."""
    if ids.size and (ids.min() < 0 or ids.max() > sys.maxunicode):
        return ids.tolist()
    return ids.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def edit_script(error_ids: TokenIds, repair_ids: TokenIds, *, align: Align = "levenshtein") -> list[Edit]:
    """An optimal script from error to repair, equal runs included; `lcs` forbids substitution.

    Raises ValueError on an unknown `align`, or on ids that are not a flat sequence of token ids.
    """
    edits = _edits(*_both_symbols(_ids(error_ids), _ids(repair_ids)), align)
    return [Edit(op.tag, op.src_start, op.src_end, op.dest_start, op.dest_end) for op in Opcodes.from_editops(edits)]


def edit_cost(error_ids: TokenIds, repair_ids: TokenIds) -> float:
    """Eq. 2: Levenshtein distance over the longer length, in [0, 1]; 0 for two empty responses.

    The normaliser is our choice. Raises ValueError on ids that are not a flat sequence of token ids.
    """
    return _cost(_levenshtein(_ids(error_ids), _ids(repair_ids)), len(error_ids), len(repair_ids))


def _cost(distance: int, error_length: int, repair_length: int) -> float:
    return distance / max(error_length, repair_length, 1)


def _ids(ids: TokenIds) -> Ids:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"token ids of shape {array.shape} and type {array.dtype}; pass a flat sequence of integers")
    return array.astype(np.int64)


def _both_symbols(error_T: Ids, repair_T: Ids) -> tuple[Symbols, Symbols]:
    both = symbols(np.concatenate([error_T, repair_T]))
    return both[: len(error_T)], both[len(error_T) :]


def _edits(error: Symbols, repair: Symbols, align: Align) -> Editops:
    """Many paths are optimal, so rapidfuzz makes every one of them, over the untrimmed sequences."""
    if align == "levenshtein":
        return Levenshtein.editops(error, repair)
    if align == "lcs":
        return LCSseq.editops(error, repair)
    raise ValueError(f"align is {align!r}; use levenshtein or lcs")


def _mark(mask_T: Mask, start: int, stop: int, anchor_gaps: bool) -> None:
    is_gap = start == stop
    mask_T[start : stop + (is_gap and anchor_gaps)] = True


def _keep_first_span(mask_T: Mask) -> None:
    start = _leading(~mask_T)
    mask_T[start + _leading(mask_T[start:]) :] = False


def _leading(true_T: Mask) -> int:
    """Number of True values before the first False."""
    return len(true_T) if true_T.all() else int(true_T.argmin())


def _levenshtein(error_T: Ids, repair_T: Ids) -> int:
    """The distance alone. Both reductions are exact for it, though not for a path: common ends cost nothing,
    and a token that occurs on one side only can match nothing, so each side needs a single symbol for those.
    """
    error_T, repair_T = _without_common_prefix(error_T, repair_T)
    error_T, repair_T = _without_common_prefix(error_T[::-1], repair_T[::-1])
    shared = np.intersect1d(error_T, repair_T)
    if edlib is None or len(shared) + 2 > EDLIB_SYMBOLS:
        return int(Levenshtein.distance(error_T.tolist(), repair_T.tolist()))
    error_bytes = _bytes(error_T, shared, len(shared))
    repair_bytes = _bytes(repair_T, shared, len(shared) + 1)
    return int(edlib.align(error_bytes, repair_bytes, mode="NW", task="distance")["editDistance"])


def _without_common_prefix(error_T: Ids, repair_T: Ids) -> tuple[Ids, Ids]:
    shorter = min(len(error_T), len(repair_T))
    prefix = _leading(error_T[:shorter] == repair_T[:shorter])
    return error_T[prefix:], repair_T[prefix:]


def _bytes(ids_T: Ids, shared: Ids, otherwise: int) -> bytes:
    symbols_T = np.where(np.isin(ids_T, shared), np.searchsorted(shared, ids_T), otherwise)
    return symbols_T.astype(np.uint8).tobytes()
