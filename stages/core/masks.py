"""Hard difference masks by whole steps, and from hard masks to gate weights (eq. 9). Axis: T tokens of one response."""

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Gate: TypeAlias = Literal["difference", "soft", "none"]
StepEnd: TypeAlias = Literal["newline", "sentence"]

SMALLEST_WEIGHT = 1 / 256

_STEP_ENDS = {
    "newline": re.compile(r"\n+"),
    # A sentence mark before white space, quotes and brackets closed behind it; not the point of 3.14.
    "sentence": re.compile(r"""[.!?]+["'”’)\]}*$\\]*(?:\n+|(?=\s|\Z))|\n+"""),
}


def step_mask(mask_T: ArrayLike, step_ids_T: ArrayLike) -> NDArray[np.bool_]:
    """The step form of eq. 8's mask: a step with a marked token is marked whole.

    Raises ValueError on unequal lengths.
    """
    marked_T, steps_T = np.asarray(mask_T, np.bool_), np.asarray(step_ids_T)
    if marked_T.shape != steps_T.shape:
        raise ValueError(f"mask of shape {marked_T.shape}, step ids of shape {steps_T.shape}; give one id a token")
    return np.isin(steps_T, steps_T[marked_T])


def step_ids(texts_T: Sequence[str], step_end: StepEnd) -> NDArray[np.int64]:
    """The step of each token, from 0, told from the tokens' texts (our choice).

    A step ends with the token that holds a line break; for `sentence` also with the one that ends a sentence: `.`, `!`
    or `?` before white space or the end of the text. A token without text, such as the end token, is its own step.
    Raises ValueError on an unknown `step_end`.
    """
    if step_end not in _STEP_ENDS:
        raise ValueError(f"step_end is {step_end!r}; use newline or sentence")
    ends = [match.end() for match in _STEP_ENDS[step_end].finditer("".join(texts_T))]
    lengths_T = np.array([len(text) for text in texts_T], np.int64)
    ends_so_far_T = np.searchsorted(ends, np.cumsum(lengths_T), side="right")
    starts_T = np.diff(ends_so_far_T, prepend=0)[:-1] > 0
    starts_T |= (lengths_T[1:] == 0) | (lengths_T[:-1] == 0)
    return np.append(0, np.cumsum(starts_T))[: len(lengths_T)]


def gate_weights(mask_T: ArrayLike, gate: Gate, *, half_life: float = 2.0) -> NDArray[np.float32]:
    """Eq. 10's gate in [0, 1]: the mask itself, its soft form (eq. 9), or 1 everywhere.

    Gates that no mask makes are in `token_credit`. Raises ValueError on an unknown gate.
    """
    match gate:
        case "difference":
            return np.asarray(mask_T, np.bool_).astype(np.float32)
        case "soft":
            return soft_weights(mask_T, half_life=half_life)
        case "none":
            return np.ones(len(np.asarray(mask_T)), np.float32)
    raise ValueError(f"gate is {gate!r}; use difference, soft or none")


def leaky_gate(gate_T: ArrayLike, leak: float) -> NDArray[np.float32]:
    """`max(gate, leak)`: what is gated out keeps a share of its gradient (our choice); (T,), float32.

    Raises ValueError unless `leak` lies in [0, 1); with 0 the gate stays as it is.
    """
    if not 0 <= leak < 1:
        raise ValueError(f"leak is {leak}; it must lie in [0, 1)")
    return np.maximum(np.asarray(gate_T, np.float32), np.float32(leak))


def evened_gate(gate_T: ArrayLike, evenness: float) -> NDArray[np.float32]:
    """`gate * (T / sum(gate)) ** evenness`: how far responses weigh alike, whatever share of them is open (our choice).

    A loss that is a mean over a response's tokens gives a response with few open tokens little weight; with 1 its
    gate has mean 1, as an ungated response's has, with 0 it stays as it is. (T,), float32; a closed gate stays closed.
    Raises ValueError unless `evenness` lies in [0, 1].
    """
    if not 0 <= evenness <= 1:
        raise ValueError(f"evenness is {evenness}; it must lie in [0, 1]")
    gate = np.asarray(gate_T, np.float32)
    total = float(gate.sum())
    return gate * np.float32((len(gate) / total) ** evenness) if total else gate


def soft_weights(mask_T: ArrayLike, *, half_life: float = 2.0) -> NDArray[np.float32]:
    """Eq. 9: `2^(-d / half_life)`, `d` tokens from the nearest marked one; below 1/256 the weight is 0.

    Base, half-life (in tokens) and cut-off are our choice. With nothing marked, every weight is 0.
    Raises ValueError unless `half_life` is positive.
    """
    if not half_life > 0:
        raise ValueError(f"half_life is {half_life} tokens; it must be above 0")
    marked_T = np.asarray(mask_T, np.bool_)
    distance_T = np.minimum(_since_marked(marked_T), _since_marked(marked_T[::-1])[::-1])
    weights_T = np.exp2(-distance_T / half_life)
    return np.where(weights_T < SMALLEST_WEIGHT, 0, weights_T).astype(np.float32)


def _since_marked(marked_T: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Tokens since the last marked one, infinite before the first."""
    position_T = np.arange(len(marked_T), dtype=np.float64)
    last_marked_T: NDArray[np.float64] = np.maximum.accumulate(np.where(marked_T, position_T, -np.inf))
    return position_T - last_marked_T
