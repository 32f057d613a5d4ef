"""From hard difference masks to gate weights (eq. 9). Axis: T tokens of one response."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Gate: TypeAlias = Literal["difference", "soft", "none"]

SMALLEST_WEIGHT = 1 / 256


def gate_weights(mask_T: ArrayLike, gate: Gate, *, half_life: float = 2.0) -> NDArray[np.float32]:
    """Eq. 10's gate in [0, 1]: the mask itself, its soft form (eq. 9), or 1 everywhere.

    Raises ValueError on an unknown gate.
    """
    match gate:
        case "difference":
            return np.asarray(mask_T, np.bool_).astype(np.float32)
        case "soft":
            return soft_weights(mask_T, half_life=half_life)
        case "none":
            return np.ones(len(np.asarray(mask_T)), np.float32)
    raise ValueError(f"gate is {gate!r}; use difference, soft or none")


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
